"""What every scorer is: answers in, a number for each out, the higher the better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


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

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """A finite score for each answer [N]. Raises RewardError where one is not finite or cannot be had."""
