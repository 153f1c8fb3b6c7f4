"""What every scorer is: answers in, a number for each out, the higher the better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from sparring.errors import RewardError

LARGEST = 1e100  # of a score, either side of 0: sums and squares of many such are finite still


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to a prompt, as token ids.

    ids       the answer, its end token included if it ended
    real_ids  the real answer to the same prompt, for scorers that compare; empty if there is none
    """

    prompt_ids: list[int]
    ids: list[int]
    real_ids: list[int]


class Scorer(Protocol):
    """Gives answers their scores. A scorer that needs a model seats it on the run's ring, and leaves it there."""

    @property
    def label(self) -> str:
        """What a report calls it, in a few words."""

    @property
    def fingerprint(self) -> str:
        """Of all that decides its scores, so that what was made with another scorer is made anew; holds no path."""

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """A finite score for each answer [N]. Raises RewardError where one is not finite or cannot be had."""


def finite(label: str, value: Any) -> float:
    """A score as a finite float; RewardError for anything else, and for what is too large to be compared."""
    if not isinstance(value, Real):
        raise RewardError(f"{label} gave {_shown(value)} for an answer, and must give a number such as 0.5")
    number: Any = value
    if -LARGEST <= number <= LARGEST:
        return float(number)
    if number in (math.inf, -math.inf) or number != number:
        raise RewardError(f"{label} gave {float(value)} for an answer, and every score must be finite; correct it")
    raise RewardError(
        f"{label} gave {_shown(value)} for an answer, and scores beyond ±{LARGEST:g} cannot be compared; scale them "
        "down"
    )


def _shown(value: Any) -> str:
    text = hex(value) if isinstance(value, int) else repr(value)  # the decimals of a huge int may be refused
    return text if len(text) <= 60 else f"{text[:57]}..."
