"""What all learning has in common, whatever is learnt: law 11 before and after it, and what it took.

An item is what a step holds several of: a prompt with its real answer, a pair, a group of answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sparring.errors import LawBroken
from sparring.models.adapters import fingerprint_tensors
from sparring.models.base import Base
from sparring.models.flops import Flops
from sparring.run import Event, Phase
from sparring.session import Session

# ---------------------------------------------------------------- law 11


def check_scored(session: Session, scored: Phase, what: str) -> None:
    """Law 11: the weights that scored what is learnt from (pairs, groups) are those that the player starts from."""
    if scored.facts["seated"] != session.ring.seated:
        raise LawBroken(
            f"law 11: the {what} were scored by {scored.facts['seated']}, but the player starts from "
            f"{session.ring.seated}; remove {scored.folder} to score again"
        )


def begun(session: Session) -> str:
    """What is about to be trained, for `check_learnt`."""
    return fingerprint_tensors(session.ring.trainable())


def check_learnt(session: Session, start: str, iteration: int, who: str, rate: str) -> None:
    """Law 11: what was trained is not what it started as. who: that was; rate: the learning rate, in words."""
    if fingerprint_tensors(session.ring.trainable()) == start:
        raise LawBroken(
            f"law 11: after iteration {iteration} the player is still {who}, bit for bit; it did not learn: "
            f"is {rate} far too small?"
        )


# ---------------------------------------------------------------- what it takes


@dataclass(frozen=True, slots=True)
class Sizes:
    """What each item takes.

    lengths  of its rows, prompt and one answer each, as attention sees them but for virtual tokens
    scored   positions at which the head is computed
    tokens   that are computed, virtual ones among them
    virtual  of these
    """

    lengths: list[list[int]]
    scored: list[int]
    tokens: list[int]
    virtual: list[int]

    @staticmethod
    def of(base: Base, prompts: Iterable[int], answers: Iterable[Sequence[int]], whole: bool = False) -> Sizes:
        """Of items that are a prompt with one or more answers, given their lengths, in the base's layout.

        whole  an answer's last token is fed too, and a reward read there; else the head is computed, where a token
               of an answer comes next
        """
        found, fed = Sizes([], [], [], []), 0 if whole else -1
        for prompt, row in zip(prompts, answers, strict=True):
            passes = 1 if base.layout.packed else len(row)  # of the prompt
            found.lengths.append([prompt + answer + fed for answer in row])
            found.scored.append(0 if whole else sum(row))
            found.virtual.append(base.virtual * passes)
            found.tokens.append((prompt + base.virtual) * passes + sum(row) + fed * len(row))
        return found

    @property
    def longest(self) -> int:
        """The item that takes the most tokens."""
        return int(np.argmax(self.tokens))

    def took(self, flops: Flops, items: Sequence[int], checkpointing: bool) -> Event:
        """Tokens, FLOPs, and virtual ones among the tokens, of training on some items.

        checkpointing  layers were computed again in the backward pass
        """
        lengths = [length for item in items for length in self.lengths[item]]
        tokens, scored = (sum(each[item] for item in items) for each in (self.tokens, self.scored))
        spent = flops.training(lengths, scored, tokens, checkpointing)
        return {"tokens": tokens, "flops": spent, "virtual": sum(self.virtual[item] for item in items)}

    def facts(
        self, session: Session, steps: list[list[int]], stopped: str | None, flops: Flops, checkpointing: bool
    ) -> Event:
        """The facts of a phase that has learnt: of the steps that were done, which may be fewer than planned."""
        done = max((event["step"] for event in session.run.events() if event["event"] == "step"), default=0)
        items = [item for step in steps[:done] for item in step]
        took = self.took(flops, items, checkpointing)
        return {"stopped": stopped, "steps": done, **took, "trainable": session.ring.size}
