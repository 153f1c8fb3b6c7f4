"""An imported adapter against PEFT: the seated player must give the log-probs that PEFT alone gives (law 12).

Shapes: N tokens of all answers, A of one, L of a whole sequence, V the vocabulary.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.browse import open_player, read_settings
from sparring.config import Config
from sparring.data.pairs import Prompt, Rows
from sparring.export.bare import bare_model, token_logprobs
from sparring.export.compared import TOLERANCE
from sparring.models.base import DTYPES, choose_device, find_base, read_config
from sparring.models.layout import NEAR
from sparring.models.quantised import quantisation
from sparring.models.scoring import score_tokens


@dataclass(frozen=True, slots=True)
class Verified:
    """The seated player against PEFT's own, on the held-out answers; nats per token.

    rms, off          root mean square of Δ log p, and the difference in NLL
    effect            root mean square of what the adapter does to its base's log-probs, by PEFT alone
    near, tolerance   what is allowed for rms and off
    skipped           why nothing was compared; else empty
    """

    answers: int
    tokens: int
    dtype: str
    nll: float
    their_nll: float
    rms: float
    effect: float
    near: float
    tolerance: float
    skipped: str = ""

    @property
    def off(self) -> float:
        """How far the NLL per token is from PEFT's."""
        return self.nll - self.their_nll

    @property
    def broken(self) -> bool:
        """Whether both were compared and are farther apart than is allowed; NaN is."""
        return not self.skipped and not (self.rms <= self.near and abs(self.off) <= self.tolerance)

    @property
    def drowned(self) -> bool:
        """Whether rounding hides what the adapter does, so that its base alone might have passed."""
        return self.effect > NEAR[torch.float32] and self.rms > self.effect / 2

    @property
    def holds(self) -> bool:
        """Whether the player was found to be PEFT's."""
        return not (self.skipped or self.broken or self.drowned)

    def text(self) -> str:
        """What came of it, in a sentence."""
        if self.skipped:
            return f"not verified: {self.skipped}"
        if self.drowned:
            return (
                f"not verified: in {self.dtype} the player is {self.rms:.2g} nats per token from PEFT's own, and the "
                f"adapter moves its base by no more than {self.effect:.2g}; import it with model.dtype=fp32"
            )
        return (
            f"verified: on {self.answers} held-out answers ({self.tokens} tokens, {self.dtype}) the player gives the "
            f"log-probs that PEFT alone gives, but for {self.rms:.2g} nats per token (root mean square; allowed: "
            f"{self.near:.2g}; the adapter moves its base by {self.effect:.2g}); NLL {self.nll:.6f} against "
            f"{self.their_nll:.6f} ({self.off:+.2g}; allowed: {self.tolerance:.2g})"
        )

    def facts(self) -> dict[str, Any]:
        """For machines, and for the file in the run."""
        numbers = {
            "nll": self.nll, "peft_nll": self.their_nll, "rms": self.rms, "effect": self.effect,
            "rms_allowed": self.near, "nll_allowed": self.tolerance,
        }  # fmt: skip
        return {
            "event": "verified",
            "holds": None if self.skipped or (self.drowned and not self.broken) else self.holds,
            "skipped": self.skipped,
            "answers": self.answers,
            "tokens": self.tokens,
            "dtype": self.dtype,
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},  # JSON has no NaN
        }


def verify(run: Path, adapter: Path) -> Verified:
    """Compare the run's θ_0, as it is seated here, with the adapter as PEFT alone loads it, on the held-out answers."""
    config = Config.model_validate(read_settings(run))
    prompts: Sequence[Prompt] = Rows([run / "data" / "eval.arrow"], Prompt)[:]
    rows = [(prompt.prompt_ids, prompt.real_ids) for prompt in prompts]
    base_folder = find_base(config.model)
    quantised = quantisation(read_config(base_folder, config.model), config.model)
    _, dtype = choose_device(config.model)
    name = next(key for key, value in DTYPES.items() if value == dtype)
    count = sum(len(answer) for _, answer in rows)
    if quantised == "int8":
        why = "on an int8 base PEFT alone gives other numbers: bitsandbytes then rounds what a layer is given, too"
        return Verified(len(rows), count, name, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, why)
    opened = open_player(run, "sft")
    tokens = config.optimiser.micro_batch_tokens
    mine = score_tokens(opened.ring.seat(opened.player), opened.ring.base, rows, tokens)
    mine_N = torch.tensor([logprob for answer in mine for logprob in answer], dtype=torch.float64)
    del opened  # one base in memory at a time
    gc.collect()
    model = bare_model(base_folder, config.model, adapter, quantised)
    theirs_N = token_logprobs(model, rows)
    with model.disable_adapter():
        effect_N = theirs_N - token_logprobs(model, rows)
    noise, shift = 0.0, 0.0
    if dtype != torch.float32:  # how far PEFT alone is from itself with another attention kernel
        model.get_base_model().set_attn_implementation("eager")
        other_N = token_logprobs(model, rows) - theirs_N
        noise, shift = _rms(other_N), abs(float(other_N.mean()))
    gap_N = mine_N - theirs_N
    return Verified(
        len(rows), count, name, -float(mine_N.mean()), -float(theirs_N.mean()), _rms(gap_N), _rms(effect_N),
        NEAR[dtype] + 2 * noise, TOLERANCE[name] + 2 * shift,
    )  # fmt: skip


def _rms(gap_N: Tensor) -> float:
    return float(gap_N.square().mean().sqrt())
