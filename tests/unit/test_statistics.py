"""Intervals against scipy-free arithmetic and known cases; what answers look like."""

from __future__ import annotations

import numpy as np
import pytest

from sparring.evaluation.answers import describe, distinct, repetition
from sparring.evaluation.statistics import FEWEST, difference, per_token


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        tokens = rng.integers(5, 50, size=60)
        nll = tokens * rng.gamma(4.0, 0.25, size=60)  # mean 1 per token
        low, high = per_token((-nll).tolist(), tokens.tolist(), seed) or (0, 0)
        covered += low <= 1 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_difference_is_paired_and_signed() -> None:
    tokens = [10, 20] * 20
    theirs = [-15.0 - i for i in range(40)]
    mine = [value + 0.1 * count for value, count in zip(theirs, tokens, strict=True)]  # likelier: NLL lower by 0.1
    found = difference(mine, theirs, tokens)
    assert found is not None
    assert found["mean"] == pytest.approx(-0.1)
    assert found["low"] == pytest.approx(-0.1)
    assert found["high"] == pytest.approx(-0.1)


def test_too_few_prompts_give_no_interval() -> None:
    assert per_token([-1.0] * (FEWEST - 1), [1] * (FEWEST - 1)) is None
    assert difference([-1.0] * 3, [-2.0] * 3, [1] * 3) is None


def test_what_answers_look_like() -> None:
    found = describe([[1, 2, 3], [1, 2, 3, 4, 5]], [True, False])
    assert found["length"] == 4
    assert found["end_rate"] == 0.5
    assert found["distinct_1"] == 5 / 8
    assert distinct([[1, 2, 1, 2]], 2) == 2 / 3
    assert distinct([[1]], 2) == 0
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1] * 10) == pytest.approx(6 / 7)
