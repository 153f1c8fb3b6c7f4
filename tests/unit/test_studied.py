"""What a study makes of test rows: differences where no prompt shows any, and metrics that an arm has no number for."""

from __future__ import annotations

from typing import Any

from sparring.studied import _differences
from sparring.testrows import Measured


def told(rewards: list[float], **more: Any) -> Measured:
    rows = [
        {"prompt": str(i // 2), "real": "a", "tokens": 2, "reward": value, **more} for i, value in enumerate(rewards)
    ]
    return Measured([rows, rows], [], [])


def test_equal_shares_are_bounded_by_how_many_prompts_there_were() -> None:
    """A scorer's mean is a share where it is between 0 and 1, though a prompt has two rows."""
    found = _differences(told([1.0, 0.0] * 20), told([1.0, 0.0] * 20))["reward"]
    assert (found.mean, found.low, found.high) == (0, -3 / 20, 3 / 20)
    other = _differences(told([1.0, 5.0] * 20), told([1.0, 5.0] * 20))["reward"]
    assert (other.low, other.high) == (0, 0)


def test_what_one_arm_has_no_number_for_is_not_compared() -> None:
    ranked, plain = told([1.0, 0.0] * 20, nll=None), told([0.0, 0.0] * 20, nll=2.0)
    assert set(_differences(plain, plain)) >= {"nll", "reward"}
    found = _differences(ranked, plain)
    assert "nll" not in found
    assert found["reward"].mean == 0.5
