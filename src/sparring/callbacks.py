"""What happens beside a training step: nothing is updated with NaN, and checkpoints are written now and then."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, final

import torch
from transformers import TrainerCallback

from sparring.errors import TrainingDiverged

CHECKPOINT_SECONDS = 60.0


@final
class Guard(TrainerCallback):
    """Stops before an update with a NaN or infinite gradient."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in kwargs["model"].parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise TrainingDiverged(diverged(state.global_step + 1, "a gradient", args.output_dir))


@final
class Minutely(TrainerCallback):
    """A checkpoint when the last is a minute old; where it falls does not change what is learnt."""

    def __init__(self) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()


def diverged(step: int, what: str, folder: str) -> str:
    """What is said when numbers of a step are not finite, and where to go on from."""
    last = last_checkpoint(Path(folder))
    kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been written yet"
    return f"{what} became NaN or infinite at step {step}; {kept}; try another run with a lower lr or beta"


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest number in a folder; None if it has none."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: path.name)
    found = [path for path in found if path.name.split("-")[1].isdigit()]
    return max(found, key=lambda path: int(path.name.split("-")[1])) if found else None
