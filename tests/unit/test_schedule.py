"""Steps hold exactly the items asked for; the learning rate rises, falls, and is never 0 while there are steps."""

from __future__ import annotations

from collections import Counter

import pytest

from sparring.schedule import plan_steps, rate_factor


@pytest.mark.parametrize(
    ("items", "per_step", "epochs"), [(10, 4, 1.0), (10, 4, 2.5), (3, 8, 0.1), (64, 32, 2.0), (1, 1, 3)]
)
def test_steps_hold_what_was_asked_for(items: int, per_step: int, epochs: float) -> None:
    steps = plan_steps(items, per_step, epochs, seed=0)
    wanted = max(1, round(items * epochs))
    assert sum(len(step) for step in steps) == wanted
    assert all(len(step) == per_step for step in steps[:-1])
    seen = Counter(item for step in steps for item in step)
    assert max(seen.values()) - min(seen[item] for item in range(items)) <= 1  # whole passes, then a part of one
    assert steps == plan_steps(items, per_step, epochs, seed=0)
    if items > 8:
        assert steps != plan_steps(items, per_step, epochs, seed=1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 1), (2, 1), (20, 2), (20, 0), (5, 5)])
def test_rate_is_never_zero(schedule: str, steps: int, warmup: int) -> None:
    rates = [rate_factor(step, steps=steps, warmup=warmup, schedule=schedule) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if warmup < steps:
        assert rates[warmup] == 1
