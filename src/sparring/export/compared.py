"""What left the run, held against the run: log p of every held-out token, and whether that is the player.

Three things must hold: the mean is the player's, single tokens are, and what exporting changed is little beside what
training did. Else the base, or another player, could pass for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.errors import LawBroken
from sparring.export.places import set_aside
from sparring.models.base import DTYPES
from sparring.models.layout import NEAR

# How far the held-out NLL of what was written may be from that of base and adapter side by side, in nats per token: a
# fifth of what single tokens may differ by (root mean square) between two ways of computing one model's log-probs,
# since this is a mean over many. On the laboratory it is 7e-9 in fp32, 3e-5 in fp16, 2e-4 in bf16.
TOLERANCE = {name: NEAR[dtype] / 5 for name, dtype in DTYPES.items()}
# The same for single tokens, root mean square; merged weights are rounded besides.
SINGLE = {name: NEAR[dtype] for name, dtype in DTYPES.items()}
ROUNDED = 3.0  # so many times as much where weights were rounded
ENGINES = {"merged": "transformers", "adapter": "PEFT"}


@dataclass(frozen=True, slots=True)
class Compared:
    """What was measured: log p [N] of every token of the held-out answers, in nats.

    what    merged or adapter
    values  under the run's player, under base + adapter in the dtype that is exported, and under the export
    before  under the base alone
    """

    what: str
    out: Path
    dtype: str
    labels: tuple[str, str, str]
    values: tuple[Sequence[float], Sequence[float], Sequence[float]]
    before: Sequence[float]
    answers: int

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return len(self.before)

    @property
    def effect(self) -> float:
        """What training did: root mean square of Δ log p of a token against the base, in nats."""
        return rms(self.values[1], self.before)

    @property
    def apart(self) -> float:
        """What exporting did: the same against base and adapter side by side."""
        return rms(self.values[2], self.values[1])

    @property
    def off(self) -> float:
        """How far the export's NLL per token is from that of base and adapter."""
        return self.nll(2) - self.nll(1)

    @property
    def near(self) -> float:
        """How far single tokens may be apart, root mean square."""
        return SINGLE[self.dtype] * (ROUNDED if self.what == "merged" and self.dtype != "fp32" else 1)

    def nll(self, which: int) -> float:
        """Per token, in nats."""
        return -sum(self.values[which]) / self.tokens

    def largest(self, which: int) -> float:
        """The largest |Δ log p| of a token, against what stands before."""
        mine, theirs = self.values[which], self.values[which - 1]
        return max(abs(a - b) for a, b in zip(mine, theirs, strict=True))

    def wrong(self) -> list[str]:
        """What does not hold, in words."""
        said = []
        tip = "" if self.dtype == "fp32" else "; try --dtype fp32"
        if not abs(self.off) <= TOLERANCE[self.dtype]:
            said.append(
                f"its held-out NLL per token is {self.nll(2):.6f}, that of {self.labels[1]} {self.nll(1):.6f}: "
                f"{self.off:+.2g} off, allowed in {self.dtype} is {TOLERANCE[self.dtype]:g}{tip}"
            )
        if not self.apart <= self.near:
            said.append(
                f"the log-prob of a token is {self.apart:.2g} nats off (root mean square), allowed in {self.dtype} is "
                f"{self.near:g}{tip}"
            )
        if self.apart > max(self.effect / 2, SINGLE["fp32"]):
            said.append(
                f"the log-prob of a token is {self.apart:.2g} nats off (root mean square), and training moved it by no "
                f"more than {self.effect:.2g}, so the player is lost in it{tip}"
            )
        return said

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(header, rows) for the terminal; differences are to the row above."""
        rows = [[self.labels[0], f"{self.nll(0):.6f}", "–", "–"]]
        for which in (1, 2):
            change = self.nll(which) - self.nll(which - 1)
            rows.append([self.labels[which], f"{self.nll(which):.6f}", f"{change:+.2g}", f"{self.largest(which):.2g}"])
        return ["", "held-out NLL per token", "Δ to the line above", "largest |Δ log p| of a token"], rows

    def said(self) -> str:
        """What came of it, without where it lies."""
        return (
            f"{self.what} ({self.dtype}): loaded by {ENGINES[self.what]} alone, its held-out NLL is {self.off:+.2g} "
            f"nats per token from that of {self.labels[1]} (allowed: {TOLERANCE[self.dtype]:g}), a token's log-prob "
            f"{self.apart:.2g} (root mean square; allowed: {self.near:g}; training moved it by {self.effect:.2g})"
            f"{self.rounded()}"
        )

    def rounded(self) -> str:
        """How far the export is from the player as the run held it, in words; empty if that is what it was held to."""
        if self.values[0] is self.values[1]:
            return ""
        return f"; from that of {self.labels[0]} its NLL is {self.nll(2) - self.nll(0):+.2g}"

    def text(self) -> str:
        """What came of it, and what is to be known of it, a line each."""
        said = f"{self.said()}: {self.out}"
        if self.dtype != "fp32" and self.what == "merged":
            said += (
                f"\nRounding merged weights to {self.dtype} moves the log-prob of a token by {self.apart:.2g} nats, "
                f"training by {self.effect:.2g} (root mean squares); --dtype fp32 rounds nothing, at twice the size"
            )
        return said

    def facts(self) -> dict[str, Any]:
        """For machines."""
        names = ("player", "attached", self.what)
        return {
            "event": self.what, "out": str(self.out), "dtype": self.dtype, "answers": self.answers,
            "tolerance": TOLERANCE[self.dtype], "nll": {name: self.nll(which) for which, name in enumerate(names)},
            "largest": {name: self.largest(which) for which, name in enumerate(names) if which},
            "moved by training": self.effect, "moved by export": self.apart, "export may move": self.near,
        }  # fmt: skip


def rms(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Root mean square of a difference."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True)) / len(mine))


def confirm(found: Compared, partial: Path, differ: Sequence[str] = ()) -> Compared:
    """Give back what was measured, or raise LawBroken: then `partial` is renamed to say that it is not the player.

    differ  what else is not as in the run, in words
    """
    said = [*found.wrong(), *differ]
    if said:
        aside = set_aside(partial, found.out)
        raise LawBroken(f"law 12: what was written is not the player: {'; '.join(said[:3])}; see {aside}")
    return found
