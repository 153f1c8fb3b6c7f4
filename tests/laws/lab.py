"""A small real session on the laboratory's base, for tests of the laws on the real code path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sparring.config import Config
from sparring.configfile import build_config
from sparring.data.pairs import Pair, Rows
from sparring.evaluation.judge import judge
from sparring.generation.play import play
from sparring.job import open_session, run_folder
from sparring.learning import fine_tune, learn
from sparring.opponent import score_pairs
from sparring.preparing import prepare_data
from sparring.run import Phase, Run
from sparring.session import Session
from sparring.tasks import PairTask

SMALL = [
    'data.split="[:48]"',
    "data.train=laboratory",
    "model.dtype=fp32",
    "data.eval_limit=8",
    "sft.epochs=2",
    "sft.lr=2e-3",
    "selfplay.lr=1e-3",
    "selfplay.beta=0.5",
    "selfplay.batch_size=16",
    "optimiser.save_every=3",
    "generation.max_new_tokens=16",
    "method.r=4",
    "threads=1",
]


def config(folder: Path, *overrides: str, name: str = "run") -> Config:
    """The small config in a temporary folder."""
    return build_config({"name": name, "runs": str(folder)}, [*SMALL, *overrides])


@contextmanager
def session(folder: Path, *overrides: str, name: str = "run") -> Iterator[Session]:
    """An open session; its run folder is locked while it lasts."""
    settings = config(folder, *overrides, name=name)
    with Run(run_folder(settings)) as run:
        yield open_session(settings, run)


class Game:
    """The phases of a run, one by one, as `self_play` calls them."""

    def __init__(self, opened: Session) -> None:
        self.session = opened
        self.data = opened.once("data", prepare_data)
        self.start = opened.once("sft", fine_tune, self.data)
        self.scores = opened.once(
            "sft-scores", judge, self.data, self.start, self.start, None, label="θ_0", iteration=None
        )

    def play(self, opponent: Phase, t: int) -> Phase:
        return self.session.once(f"{t}/played", play, self.data, opponent, iteration=t)

    def score(self, opponent: Phase, played: Phase, before: Phase | None, t: int) -> Phase:
        return self.session.once(f"{t}/pairs", score_pairs, self.data, opponent, played, before, iteration=t)

    def learn(self, opponent: Phase, pairs: Phase, t: int) -> Phase:
        return self.session.once(f"{t}/player", learn, opponent, pairs, self.data, self.scores, iteration=t)

    def iteration(self, opponent: Phase, t: int, before: Phase | None = None) -> tuple[Phase, Phase, Phase]:
        """(played, pairs, player) of one iteration."""
        played = self.play(opponent, t)
        pairs = self.score(opponent, played, before, t)
        return played, pairs, self.learn(opponent, pairs, t)


def pair_rows(phase: Phase) -> Rows[Pair]:
    """The scored pairs of a phase."""
    return Rows([phase.folder / "pairs.arrow"], Pair)


def task(opened: Session, pairs: Phase | Rows[Pair], iteration: int = 0, **changes: Any) -> PairTask:
    """The real task on some pairs, with changed self-play settings."""
    rows = pair_rows(pairs) if isinstance(pairs, Phase) else pairs
    settings = opened.config.selfplay.model_copy(update=changes)
    return PairTask(opened.ring.base, rows, settings, iteration, 4096)


def gradients(opened: Session, made: PairTask, items: list[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """(mean loss, gradient per trainable tensor) of some pairs for the challenger in the ring."""
    opened.ring.model.zero_grad()
    loss, _ = made.loss(opened.ring.model, items)
    mean = loss / made.weight(items)
    mean.backward()
    found = {name: p.grad.clone() for name, p in opened.ring.trainable().items() if p.grad is not None}
    opened.ring.model.zero_grad()
    return mean.item(), found


def size(tensors: dict[str, torch.Tensor]) -> float:
    """Norm of all tensors together."""
    return float(torch.stack([t.norm() for t in tensors.values()]).norm())


def dot(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Inner product of two sets of tensors."""
    return float(sum((a[name] * b[name]).sum() for name in a))
