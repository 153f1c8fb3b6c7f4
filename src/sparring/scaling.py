"""Loss scaling for fp16, whose smallest number is 6e-8: gradients of activations below it would be lost.

The loss is multiplied by a power of two before the backward pass, and the gradients are divided by it after: both exact
in fp32, in which adapters are trained. Where the scale is too large for fp16, a gradient becomes infinite; the
step is then done again with half of it, so that no step is left out and no update depends on how the scale got
where it is. (PyTorch's GradScaler skips such a step.) fp32 and bf16 reach as far as they need to, and have no scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparring.files import read_json, write_atomic

FIRST = 2.0**14
MOST = 2.0**24
SELDOM = 500  # steps in a row that went well, before the scale is tried twice as large
NAME = "scale.json"


@dataclass
class Scale:
    """What the loss is multiplied by, and for how many steps it went well."""

    value: float = FIRST
    well: int = 0

    @staticmethod
    def of(dtype: torch.dtype) -> Scale | None:
        """A fresh scale for training in fp16; None in another dtype, which needs none."""
        return Scale(FIRST) if dtype == torch.float16 else None

    def fits(self, gradients: Iterable[Tensor]) -> bool:
        """Divide gradients by the scale, in place; or, if one is not finite, halve the scale: do the step again.

        With a scale of 1 they are left as they are, finite or not: it is not the scale's fault.
        """
        found = list(gradients)
        if self.value > 1 and not all(bool(torch.isfinite(gradient).all()) for gradient in found):
            self.value, self.well = self.value / 2, 0
            return False
        for gradient in found:
            gradient.div_(self.value)
        self.well += 1
        return True

    def grow(self) -> None:
        """Twice as large after many steps that went well; called when a step is over."""
        if self.well >= SELDOM and self.value < MOST:
            self.value, self.well = self.value * 2, 0

    def save(self, folder: Path) -> None:
        """Beside a checkpoint's weights: a run that goes on has the scale of one never killed."""
        write_atomic(folder / NAME, json.dumps({"value": self.value, "well": self.well}))

    def load(self, folder: Path) -> None:
        """What `save` wrote."""
        kept = read_json(folder / NAME)
        self.value, self.well = kept["value"], kept["well"]


def drawn_again(device: torch.device) -> list[Tensor]:
    """The states of the random numbers that a step draws from (dropout), to do it again with the same."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def put_back(states: list[Tensor], device: torch.device) -> None:
    """Set the random numbers back to where `drawn_again` found them."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What draws random numbers in here takes none from the training around it."""
    states = drawn_again(device)
    yield
    put_back(states, device)
