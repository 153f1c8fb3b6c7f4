"""Preferences with a planted order: a valid answer over one whose sums are wrong, but for a share turned round.

So the best accuracy is known: against the labels as they stand, 1 - FLIPPED; against the order that was planted, 1.
"""

from __future__ import annotations

import random
from typing import Any

from sparring.laboratory import world

FLIPPED = 0.1
COUNT = 3000


def rows(count: int = COUNT, flipped: float = FLIPPED, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs {"prompt", "chosen", "rejected"}, a share `flipped` of them the wrong way round.

    All 1000 prompts have as many pairs, but for one more that some have.
    """
    rng = random.Random(f"laboratory preferences {seed}")
    made: list[dict[str, Any]] = []
    prompts = rng.sample(world.PROMPTS, len(world.PROMPTS))
    for number in range(count):
        prompt = prompts[number % len(prompts)]
        good = world.sample(prompt, rng)
        made.append({"prompt": prompt, "chosen": good, "rejected": _wrong(good, prompt, rng)})
    for row in rng.sample(made, round(flipped * count)):
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
