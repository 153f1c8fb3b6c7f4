"""Fault injection: ways to get SPIN wrong, each on the real code path and in exactly one place.

A fault is a context manager: inside it the implementation is wrong, outside it is right again. Where a law
checked at run time stops the run, lifting that one guard, another context manager, lets the damage be seen.
`FAULTS` says for each which read-outs it moves, and which way; laboratory/trials.py measures them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sparring.generation.play as play_phase
from sparring import learning, opponent, selfplay, tasks
from sparring.controls import RULES, Rules
from sparring.data.collate import Row
from sparring.data.pairs import Prompt
from sparring.generation.base import Answer
from sparring.generation.local import LocalGenerator
from sparring.learning import learn
from sparring.models.players import Player, Ring
from sparring.models.scoring import Scores, answer_logprobs
from sparring.run import Event, Phase
from sparring.session import Session
from sparring.tasks import PairTask

CUT = 3  # tokens after which the truncating fault cuts
DROPPED = 0.1  # dropout rate that is left on

Context = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Guard:
    """A check at run time that stops a run with this fault.

    law   as its message names it
    lift  disables just this check
    """

    law: str
    lift: Context


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to be wrong.

    inject     makes it so
    guard      what stops such a run; None: nothing does
    readout    the name of the number that shows it best, once the guard is lifted
    direction  +1: the fault raises the read-out; -1: it lowers it
    what       a sentence for the report
    fresh      it acts in fine-tuning already, so that θ_0 must be made anew
    """

    inject: Context
    guard: Guard | None
    readout: str
    direction: int
    what: str
    fresh: bool = False


# ---------------------------------------------------------------- making it wrong


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside."""
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def greedy_negatives() -> AbstractContextManager[None]:
    """The opponent gives its likeliest tokens, not samples."""

    def generator(model: Any, base: Any, config: Any) -> LocalGenerator:
        return LocalGenerator(model, base, config.model_copy(update={"temperature": 0.0}))

    return replaced(play_phase, "LocalGenerator", generator)


def fake_end() -> AbstractContextManager[None]:
    """Answers are cut early, and an end token that the opponent never gave is put behind them."""
    right = play_phase.sample

    def sample(generator: Any, prompts: Any, seed: int, stream: int, samples: int, limit: int) -> list[list[Answer]]:
        end = generator.base.renderer.end_ids[0]
        return [
            [_closed(answer, end) for answer in row] for row in right(generator, prompts, seed, stream, samples, CUT)
        ]

    return replaced(play_phase, "sample", sample)


def _closed(answer: Answer, end: int) -> Answer:
    return answer if answer.finish == "end" else Answer([*answer.ids, end], "end", answer.logprob)


def other_template() -> AbstractContextManager[None]:
    """The opponent is asked in another form than the player is trained on: `;a+b2=` for `a+b2=`."""
    right = play_phase.sample

    def sample(generator: Any, prompts: Sequence[Prompt], *more: Any) -> list[list[Answer]]:
        mark = generator.base.renderer.tokenizer.convert_tokens_to_ids(";")
        asked = [dataclasses.replace(p, prompt_ids=[p.prompt_ids[0], mark, *p.prompt_ids[1:]]) for p in prompts]
        return right(generator, asked, *more)

    return replaced(play_phase, "sample", sample)


@contextmanager
def stale_opponent() -> Iterator[None]:
    """θ_0 plays and scores in every iteration, though the player starts from θ_t."""
    first: list[Phase] = []

    def played(session: Session, folder: Path, data: Phase, now: Phase, *, iteration: int) -> Event:
        first.append(now)
        return play_phase.play(session, folder, data, first[0], iteration=iteration)

    def scored(session: Session, folder: Path, data: Phase, now: Phase, *more: Any, iteration: int) -> Event:
        return opponent.score_pairs(session, folder, data, first[0], *more, iteration=iteration)

    with replaced(selfplay, "RULES", {**RULES, "opponent": Rules(played, scored, learn)}):
        yield


def unmasked_prompt() -> AbstractContextManager[None]:
    """What is trained counts the prompt's tokens as if they were the answer's."""

    def whole(model: Any, base: Any, rows: Sequence[Row]) -> Scores:
        return answer_logprobs(model, base, [(prompt[:1], prompt[1:] + answer) for prompt, answer in rows])

    return replaced(tasks, "answer_logprobs", whole)


def dropout_on() -> AbstractContextManager[None]:
    """Dropout is left on when the player learns to tell answers apart."""
    right = Ring.challenge

    def challenge(ring: Ring, player: Player, seed: int, dropout: float = 0.0) -> Any:
        return right(ring, player, seed, DROPPED if player.adapters else dropout)

    return replaced(Ring, "challenge", challenge)


# ---------------------------------------------------------------- lifting guards


def without_law_1() -> AbstractContextManager[None]:
    """The first step's margins are not looked at."""
    return replaced(PairTask, "inspect", lambda task, step, means: means.pop("noise"))


@contextmanager
def without_law_5() -> Iterator[None]:
    """Whether the answers are samples, and those that were sampled, is not tested."""
    with replaced(opponent, "check_samples", lambda session, model, fresh: None), replaced(opponent, "FAR", math.inf):
        yield


@contextmanager
def without_law_11() -> Iterator[None]:
    """Who scored the pairs is not looked at, and, which would show it too, nor are the first step's margins."""
    with ExitStack() as stack:
        stack.enter_context(replaced(learning, "check_scored", lambda session, pairs, what: None))
        stack.enter_context(without_law_1())
        yield


LAW_1, LAW_5 = Guard("law 1", without_law_1), Guard("law 5", without_law_5)
LAW_11 = Guard("law 11", without_law_11)

FAULTS: dict[str, Fault] = {
    "greedy negatives": Fault(
        greedy_negatives, LAW_5, "sampling z", +1, "the opponent's likeliest answers stand in for its samples"
    ),
    "fake end token": Fault(
        fake_end, LAW_5, "length law", +1, f"answers are cut after {CUT} tokens, and an end token is put behind them"
    ),
    "template mismatch": Fault(
        other_template, LAW_5, "sampling z", -1, "the opponent is asked with another template than the player"
    ),
    "stale opponent": Fault(
        stale_opponent, LAW_11, "first margin", +1, "θ₀'s answers and log-probs serve every iteration"
    ),
    "unmasked prompt": Fault(
        unmasked_prompt, LAW_1, "log p of the prompt", +1, "prompt tokens are counted in the loss", fresh=True
    ),
    "dropout on": Fault(dropout_on, LAW_1, "law-1 noise", +1, f"dropout of {DROPPED:g} stays on in self-play"),
}
