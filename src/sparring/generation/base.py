"""What every way of generating gives and takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sparring.generation.sampling import Keys


@dataclass(frozen=True, slots=True)
class Answer:
    """A sampled answer: token ids as they came, and why it ended.

    finish   "end": the last id is an end token, really emitted. "length": it was cut and holds none.
    logprob  log p(answer | prompt) under the player at temperature 1, in nats: the sum over its tokens.
             Its last digits depend on what was decoded beside it, so equal answers may differ in it.
    """

    ids: list[int]
    finish: str
    logprob: float = field(compare=False)


class Generator(Protocol):
    """Answers prompts with the player that is seated."""

    def __call__(self, prompts: Sequence[list[int]], keys: Keys, max_new_tokens: int) -> list[Answer]:
        """One answer per prompt, in the order given; keys [len(prompts)] choose the random numbers."""
        ...
