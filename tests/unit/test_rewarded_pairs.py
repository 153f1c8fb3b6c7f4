"""What is said of a reward model: known answers on small cases."""

from __future__ import annotations

import math
import random

import pytest

from sparring.evaluation.rewarded_pairs import correlation, measure_pairs, reliability, wins
from sparring.evaluation.statistics import share


def test_wins_and_ties():
    assert wins([2, 1, 1], [1, 2, 1]) == [1.0, 0.0, 0.5]


def test_a_pair_counts_by_its_weight():
    found = share([1.0, 0.0, 1.0], [1.0, 0.5, 0.5], ["a", "b", "c"])
    assert found["mean"] == pytest.approx(0.75)
    assert found["low"] is None  # three prompts are too few


def test_pairs_to_one_prompt_stay_together():
    draw = random.Random(0)
    values = [float(draw.random() < 0.7) for _ in range(30)]
    alone = share(values, [1.0] * 30, range(30))
    tenfold = share([v for v in values for _ in range(10)], [1.0] * 300, [p for p in range(30) for _ in range(10)])
    apart = share([v for v in values for _ in range(10)], [1.0] * 300, range(300))
    assert tenfold["mean"] == pytest.approx(alone["mean"])
    assert tenfold["high"] - tenfold["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.05)
    assert apart["high"] - apart["low"] < 0.5 * (alone["high"] - alone["low"])


def test_a_calibrated_model_has_a_small_error():
    draw = random.Random(1)
    gaps = []
    for _ in range(20000):
        size = draw.uniform(0, 4)
        gaps.append(size if draw.random() < 1 / (1 + math.exp(-size)) else -size)
    found = reliability(gaps, [1.0] * len(gaps))
    assert found["ece"] < 0.01
    assert reliability([3 * gap for gap in gaps], [1.0] * len(gaps))["ece"] > 0.05
    assert found["log_loss"] < found["no_idea"] < reliability([-gap for gap in gaps], [1.0] * len(gaps))["log_loss"]
    assert sum(count for _, _, count in found["bins"]) == len(gaps)


def test_no_idea_is_half_right():
    found = reliability([0.0] * 4, [1.0] * 4)
    assert found["bins"] == [[0.5, 0.5, 4.0]]
    assert found["log_loss"] == pytest.approx(math.log(2))
    assert reliability([1e6, -1e6], [1.0, 1.0])["log_loss"] == pytest.approx(5e5)


def test_correlation_with_length():
    assert correlation([1.0, 2.0, 3.0], [10, 20, 30])["pearson"] == pytest.approx(1)
    assert correlation([1.0, 2.0, 9.0], [30, 20, 10])["spearman"] == pytest.approx(-1)
    assert correlation([1.0, 1.0], [1, 2]) == {"pearson": None, "spearman": None}


def test_a_model_of_length_is_no_better_than_length():
    draw = random.Random(2)
    lengths = [(draw.randint(1, 50), draw.randint(1, 50)) for _ in range(200)]
    found = measure_pairs(
        [float(a) for a, _ in lengths], [float(b) for _, b in lengths], lengths, [1.0] * 200, range(200), [[]] * 200
    )
    assert found["accuracy"]["mean"] == found["longer"]["mean"]
    if found["length_rule"] == "longer":
        assert found["over_length"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["length_correlation"]["spearman"] == pytest.approx(1)
    assert found["people"] is None


def test_the_shorter_answer_may_be_the_baseline():
    lengths = [(1, 2)] * 15 + [(2, 1)] * 5
    found = measure_pairs([0.0] * 20, [0.0] * 20, lengths, [1.0] * 20, range(20), [[]] * 20)
    assert found["accuracy"]["mean"] == 0.5
    assert found["ties"] == 20
    assert (found["length_rule"], found["longer"]["mean"]) == ("shorter", 0.25)
    assert found["over_length"]["mean"] == pytest.approx(-0.25)


def test_a_tie_counts_once_in_everything():
    """Told as two halves, it says what it would if every decided pair were told twice with weight 1/2."""
    draw = random.Random(3)
    chosen, rejected = ([draw.gauss(0, 1) for _ in range(20)] for _ in range(2))
    lengths = [(draw.randint(1, 50), draw.randint(1, 50)) for _ in range(20)]
    votes = [[1.0, 1.0, 0.0]] * 20
    tie = (2.0, -1.0, (40, 3), [0.5, 0.5, 1.0])

    def told(times: int, weight: float):
        good = [(a, b, size, said) for a, b, size, said in zip(chosen, rejected, lengths, votes, strict=True)]
        rows = [row for row in good for _ in range(times)]
        a, b, size, said = tie
        rows += [tie, (b, a, size[::-1], [1 - vote for vote in said])]
        weights = [weight] * (len(rows) - 2) + [0.5, 0.5]
        prompts = [*(index // times for index in range(20 * times)), "tie", "tie"]
        first, second, sizes, people = map(list, zip(*rows, strict=True))
        return measure_pairs(first, second, sizes, weights, prompts, people)

    halves, wanted = told(1, 1.0), told(2, 0.5)
    assert halves["n"] == wanted["n"] == 21
    assert halves["people"]["pairs"] == 21
    assert halves["people"] == pytest.approx(wanted["people"])
    for name in ("margin", "chosen_reward", "rejected_reward", "reward_mean", "reward_deviation"):
        assert halves[name] == pytest.approx(wanted[name]), name
    for name in ("length_correlation", "gap_correlation"):
        assert halves[name] == pytest.approx(wanted[name]), name
    assert halves["margin"] == pytest.approx((sum(chosen) - sum(rejected)) / 21)
    same = measure_pairs([1.0] * 4, [1.0] * 4, [(1, 2)] * 4, [1, 1, 0.5, 0.5], [1, 2, 3, 3], [[]] * 4)
    assert (same["n"], same["ties"]) == (3, 3)
