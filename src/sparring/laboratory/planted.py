"""Preferences with a planted order: a valid answer over one whose sums are wrong, but for a share turned round.

So the best accuracy is known: against the labels as they stand, 1 - FLIPPED; against the order that was planted, 1.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sparring.errors import DataError
from sparring.laboratory import world
from sparring.laboratory.world import Row

FLIPPED = 0.1
HELD_OUT = 200  # prompts
EACH = 3  # pairs to a prompt


def split(seed: int, flipped: float = FLIPPED, test: int = 0) -> tuple[list[Row], list[Row]]:
    """Training pairs and held-out ones, with no prompt on both sides: 2400 and 600 of the world's 1000 prompts.

    test  prompts of `test_pairs`, which are among neither; DataError if too few are left
    """
    if test >= len(world.PROMPTS) - HELD_OUT:
        raise DataError(
            f"{test} test prompts asked for, but the laboratory has {len(world.PROMPTS)}, of which {HELD_OUT} are held "
            "out; lower data.test_size"
        )
    rng = random.Random(f"laboratory preferences {seed}")
    taken = {row["prompt"] for row in world.test_rows(test)}
    left = [prompt for prompt in world.PROMPTS if prompt not in taken]
    prompts = rng.sample(left, len(left))
    train, held = (_pairs(part, flipped, rng) for part in (prompts[HELD_OUT:], prompts[:HELD_OUT]))
    return train, held


def test_pairs(count: int) -> list[Row]:
    """Pairs for the last measurement: the same whatever the seed of a run, to the prompts of `world.test_rows`."""
    prompts = [row["prompt"] for row in world.test_rows(count)]
    return _pairs(prompts, FLIPPED, random.Random("laboratory preferences test"))


def _pairs(prompts: Sequence[str], flipped: float, rng: random.Random) -> list[Row]:
    """EACH pairs {"prompt", "chosen", "rejected"} to every prompt, a share `flipped` the wrong way round."""
    made: list[Row] = []
    for prompt in [prompt for prompt in prompts for _ in range(EACH)]:
        good = world.sample(prompt, rng)
        made.append({"prompt": prompt, "chosen": good, "rejected": _wrong(good, prompt, rng)})
    for row in rng.sample(made, round(flipped * len(made))):
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return made


def is_valid(prompt: str, answer: str) -> bool:
    """Whether an answer is one of the prompt's valid ones: what was planted."""
    return answer in world.answers(prompt)


def _wrong(good: str, prompt: str, rng: random.Random) -> str:
    """The answer with one of its two sums another digit."""
    first, second = good.split(";")
    while True:
        if rng.random() < 0.5:
            changed = f"{first[:-1]}{rng.randrange(10)};{second}"
        else:
            changed = f"{first};{second[:-1]}{rng.randrange(10)}"
        if changed not in world.answers(prompt):
            return changed
