"""What left the run, held against the run: numbers, the place it gets, and the name it gets if it is not the player."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.errors import InputError, LawBroken
from sparring.files import remove
from sparring.models.base import DTYPES
from sparring.models.layout import NEAR

# How far the held-out NLL of what was written may be from that of base and adapter side by side, in nats per token: a
# fifth of what single tokens may differ by (root mean square) between two ways of computing one model's log-probs,
# since this is a mean over many. On the laboratory it is 7e-9 in fp32, 3e-5 in fp16, 2e-4 in bf16.
TOLERANCE = {name: NEAR[dtype] / 5 for name, dtype in DTYPES.items()}
ENGINES = {"merged": "transformers", "adapter": "PEFT"}


@dataclass(frozen=True, slots=True)
class Compared:
    """What was measured: log p of every held-out answer in nats under the run's player, base + adapter, the export.

    what    merged or adapter
    before  log p of every answer under the base alone, in nats
    """

    what: str
    out: Path
    dtype: str
    labels: tuple[str, str, str]
    values: tuple[Sequence[float], Sequence[float], Sequence[float]]
    tokens: int
    before: Sequence[float]

    @property
    def effect(self) -> float:
        """What training did: root mean square over the answers of Δ log p against the base, in nats."""
        return _rms(self.values[1], self.before)

    @property
    def apart(self) -> float:
        """What exporting did: the same against base and adapter side by side."""
        return _rms(self.values[2], self.values[1])

    @property
    def off(self) -> float:
        """How far the export's NLL per token is from that of base and adapter."""
        return self.nll(2) - self.nll(1)

    def nll(self, which: int) -> float:
        """Per token, in nats."""
        return -sum(self.values[which]) / self.tokens

    def largest(self, which: int) -> float:
        """The largest |Δ log p| of an answer, against what stands before."""
        mine, theirs = self.values[which], self.values[which - 1]
        return max(abs(a - b) for a, b in zip(mine, theirs, strict=True))

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(header, rows) for the terminal; differences are to the row above."""
        rows = [[self.labels[0], f"{self.nll(0):.6f}", "–", "–"]]
        for which in (1, 2):
            change = self.nll(which) - self.nll(which - 1)
            rows.append([self.labels[which], f"{self.nll(which):.6f}", f"{change:+.2g}", f"{self.largest(which):.2g}"])
        return ["", "held-out NLL per token", "Δ to the line above", "largest |Δ log p| of an answer"], rows

    def said(self) -> str:
        """What came of it, without where it lies."""
        return (
            f"{self.what} ({self.dtype}): loaded by {ENGINES[self.what]} alone, its held-out NLL is {self.off:+.2g} "
            f"nats per token from that of {self.labels[1]} (allowed: {TOLERANCE[self.dtype]:g})"
        )

    def text(self) -> str:
        """What came of it, and what is to be known of it, a line each."""
        said = f"{self.said()}: {self.out}"
        if self.dtype != "fp32" and self.what == "merged":
            said += (
                f"\nRounding merged weights to {self.dtype} moves the log-prob of an answer by {self.apart:.2g} nats, "
                f"training by {self.effect:.2g} (root mean squares); --dtype fp32 rounds nothing, at twice the size"
            )
            if self.apart > self.effect / 2:
                said += "\nSo little is left of what training did: take --dtype fp32, or the adapter"
        return said

    def facts(self) -> dict[str, Any]:
        """For machines."""
        names = ("player", "attached", self.what)
        return {
            "event": self.what, "out": str(self.out), "dtype": self.dtype, "tolerance": TOLERANCE[self.dtype],
            "nll": {name: self.nll(which) for which, name in enumerate(names)},
            "largest": {name: self.largest(which) for which, name in enumerate(names) if which},
            "moved by training": self.effect, "moved by export": self.apart,
        }  # fmt: skip


def _rms(mine: Sequence[float], theirs: Sequence[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True)) / len(mine))


def confirm(found: Compared, partial: Path, wrong: Sequence[str] = ()) -> Compared:
    """Give back what was measured, or raise LawBroken: then `partial` is renamed to say that it is not the player.

    wrong  what else is not as in the run, in words
    """
    said = list(wrong)
    if not abs(found.off) <= TOLERANCE[found.dtype]:
        said.insert(
            0,
            f"its held-out NLL per token is {found.nll(2):.6f}, that of {found.labels[1]} {found.nll(1):.6f}: "
            f"{found.off:+.2g} off, allowed in {found.dtype} is {TOLERANCE[found.dtype]:g}"
            + ("" if found.dtype == "fp32" or found.what != "merged" else "; try --dtype fp32"),
        )
    if said:
        aside = unverified(partial, found.out)
        raise LawBroken(f"law 12: what was written is not the player: {'; '.join(said[:3])}; see {aside}")
    return found


def unverified(partial: Path, out: Path) -> Path:
    """Rename what did not hold; returns where it is."""
    aside = out.with_name(out.name + ".unverified")
    remove(aside)
    os.rename(partial, aside)
    return aside


def place(partial: Path, out: Path) -> None:
    """Give what is finished its name."""
    remove(out)
    os.rename(partial, out)


MARKS = ("config.json", "adapter_config.json", "*.gguf")  # one of which every export holds


def free(out: Path, force: bool) -> None:
    """Refuse a place that is taken, before anything is loaded."""
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; make it, or give another --out")
    if out.exists() and not force:
        raise InputError(f"{out} exists; give another --out, or --force to replace it")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _exported(out))):
        raise InputError(f"{out} is not a model's folder, so it is not replaced; give another --out")


def _exported(out: Path) -> bool:
    """Whether a folder is a model, an adapter or GGUF files, and nothing more: no run, no folder within."""
    held = any(next(out.glob(mark), None) for mark in MARKS)
    return held and not any(path.is_dir() for path in out.iterdir()) and not (out / "run.lock.yaml").exists()
