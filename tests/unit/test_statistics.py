"""Intervals against scipy-free arithmetic and known cases; what answers look like."""

from __future__ import annotations

import numpy as np
import pytest

from sparring.data.pairs import Prompt, prompts_of
from sparring.evaluation.answers import describe, distinct, repetition
from sparring.evaluation.judges import Verdicts
from sparring.evaluation.statistics import FEWEST, difference, per_token, share, together
from sparring.evaluation.valued import paired_gap


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        tokens = rng.integers(5, 50, size=60)
        nll = tokens * rng.gamma(4.0, 0.25, size=60)  # mean 1 per token
        low, high = per_token((-nll).tolist(), tokens.tolist(), range(60), seed) or (0, 0)
        covered += low <= 1 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_difference_is_paired_and_signed() -> None:
    tokens = [10, 20] * 20
    theirs = [-15.0 - i for i in range(40)]
    mine = [value + 0.1 * count for value, count in zip(theirs, tokens, strict=True)]  # likelier: NLL lower by 0.1
    found = difference(mine, theirs, tokens, range(40))
    assert found is not None
    assert found["mean"] == pytest.approx(-0.1)
    assert found["low"] == pytest.approx(-0.1)
    assert found["high"] == pytest.approx(-0.1)


def test_too_few_prompts_give_no_interval() -> None:
    assert per_token([-1.0] * (FEWEST - 1), [1] * (FEWEST - 1), range(FEWEST - 1)) is None
    assert difference([-1.0] * 3, [-2.0] * 3, [1] * 3, range(3)) is None


def test_rows_to_one_prompt_are_one_unit() -> None:
    """Sixty rows of three prompts are three; each row of twenty prompts told three times says no more than once."""
    values = [float(i % 7) for i in range(60)]
    three = [row % 3 for row in range(60)]
    assert per_token(values, [1] * 60, three) is None
    assert difference(values, values[::-1], [1] * 60, three) is None
    assert paired_gap(values, values[::-1], three) is None
    found = share(values, [1.0] * 60, three)
    assert (found["mean"], found["low"], found["high"]) == (pytest.approx(sum(values) / 60), None, None)
    assert Verdicts([1.0] * 60, [str(row) for row in three], 0).interval is None
    once, twenty = values[:20], range(20)
    assert per_token(once * 3, [1] * 60, [*twenty] * 3) == pytest.approx(per_token(once, [1] * 20, twenty))


def test_prompts_are_told_apart_by_their_tokens() -> None:
    rows = [Prompt(key, ids, [9], True, "") for key, ids in enumerate([[1, 2], [1], [1, 2]])]
    assert prompts_of(rows) == [(1, 2), (1,), (1, 2)]
    assert together(prompts_of(rows), [1.0, 2.0, 4.0], [1, 1, 1]) == [[5.0, 2.0], [2.0, 1.0]]


def test_what_answers_look_like() -> None:
    found = describe([[1, 2, 3], [1, 2, 3, 4, 5]], [True, False])
    assert found["length"] == 4
    assert found["end_rate"] == 0.5
    assert found["distinct_1"] == 5 / 8
    assert distinct([[1, 2, 1, 2]], 2) == 2 / 3
    assert distinct([[1]], 2) == 0
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1] * 10) == pytest.approx(6 / 7)
