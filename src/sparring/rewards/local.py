"""Rewards that need no model: an answer that matches the real one, and the laboratory's valid answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparring.data.messages import Renderer
from sparring.evaluation.extract import matches
from sparring.laboratory import world
from sparring.rewards.scorer import Answered


@dataclass(frozen=True, slots=True)
class Match:
    """1 if what counts in an answer is that of the real one, else 0; `spec` as in evaluation.match."""

    renderer: Renderer
    spec: str

    @property
    def label(self) -> str:
        """What a report calls it."""
        return f"match ({self.spec})"

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """1 or 0 for each answer."""
        decode = self.renderer.decode
        return [float(matches(self.spec, decode(one.ids), decode(one.real_ids))) for one in answers]


@dataclass(frozen=True, slots=True)
class Validity:
    """1 if an answer ended and is one of the valid ones of its prompt in the laboratory, else 0."""

    renderer: Renderer

    @property
    def label(self) -> str:
        """What a report calls it."""
        return "validity"

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """1 or 0 for each answer."""
        return [float(self._valid(one)) for one in answers]

    def _valid(self, one: Answered) -> bool:
        ended = bool(one.ids) and one.ids[-1] in self.renderer.end_ids
        return ended and self.renderer.decode(one.ids) in world.answers(self.renderer.decode(one.prompt_ids))
