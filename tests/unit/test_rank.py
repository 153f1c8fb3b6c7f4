"""Best of n, its curve, and pairs kept by a scorer."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from sparring.data.pairs import Pair
from sparring.errors import RewardError
from sparring.rewards.rank import best, curve, expected_best, filter_pairs, kl_bound


class ById:
    """A scorer that gives an answer's first id."""

    label, fingerprint = "first id", "0"

    def __call__(self, answers):
        return [float(answer.ids[0]) for answer in answers]


def test_the_best_answer_is_the_first_of_the_highest():
    assert [best(row) for row in ([3.0, 9.0, 4.0], [5.0, 5.0], [7.0])] == [1, 0, 0]
    with pytest.raises(RewardError, match="no answer to choose from"):
        best([])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_the_estimate_is_the_mean_over_all_subsets(seed, n):
    draw = random.Random(seed)
    scores = [draw.choice([0.0, 1.0, 2.0, 3.0]) for _ in range(7)]  # with ties
    quality = [draw.gauss(0, 1) for _ in scores]
    means = []
    for subset in itertools.combinations(range(7), n):
        top = max(scores[i] for i in subset)
        tied = [quality[i] for i in subset if scores[i] == top]
        means.append(sum(tied) / len(tied))  # a tie chooses each as often
    assert expected_best(scores, quality, n) == pytest.approx(sum(means) / len(means))


def test_the_ends_of_the_curve():
    scores, quality = [0.3, 0.1, 0.9, 0.5], [1.0, 2.0, 3.0, 4.0]
    assert expected_best(scores, quality, 1) == pytest.approx(2.5)
    assert expected_best(scores, quality, 4) == 3.0
    for n in (0, 5):
        with pytest.raises(RewardError, match=f"the best of {n} needs"):
            expected_best(scores, quality, n)


def test_kl_is_that_of_best_of_n():
    """Enumerated: n draws of a uniform law without ties; the best of them has probability (k^n - (k-1)^n) / K^n."""
    many, n = 2000, 4
    exact = sum(p * math.log(p * many) for k in range(1, many + 1) if (p := (k**n - (k - 1) ** n) / many**n) > 0)
    assert exact == pytest.approx(kl_bound(n), abs=2e-3)
    assert exact <= kl_bound(n)
    assert kl_bound(1) == 0


def test_a_curve_has_intervals_over_prompts():
    draw = random.Random(0)
    scores = [[draw.gauss(0, 1) for _ in range(12)] for _ in range(40)]
    prompts = range(40)
    points = curve(scores, prompts)
    assert [point.n for point in points] == [1, 2, 4, 8, 12]
    assert [point.quality for point in points] == sorted(point.quality for point in points)
    assert all(point.low < point.quality < point.high for point in points)
    noise = [[draw.gauss(0, 1) for _ in row] for row in scores]
    last = curve(scores, prompts, noise, [12])[0]
    assert last.low < 0.3
    assert abs(last.quality) < 0.6  # another yardstick sees nothing in it
    assert curve(scores[:3], prompts[:3])[0].low is None
    repeated = curve(scores, [row % 3 for row in range(40)])
    assert [point.quality for point in repeated] == [point.quality for point in points]
    assert all(point.low is None and point.gain[1] is None for point in repeated)  # three prompts are too few


def pairs() -> list[Pair]:
    """Real answers score 5, synthetic ones what they are."""
    return [
        Pair(0, [1], [5], [[3], [7], [4]], -1.0, [-2.0, -3.0, -4.0], 0),
        Pair(1, [2], [5], [[6]], -1.0, [-2.0], 0),
        Pair(2, [2], [5], [[5]], -1.0, [-2.0], 0),
    ]


def test_pairs_are_kept_where_the_real_answer_scores_above():
    found = filter_pairs(ById(), pairs())
    assert [(pair.key, pair.synthetic_ids, pair.opponent_synthetic) for pair in found.pairs] == [
        (0, [[3], [4]], [-2.0, -4.0])
    ]
    assert (found.answers, found.kept) == (5, 2)
    assert filter_pairs(ById(), pairs(), gap=1.5).kept == 1
    assert filter_pairs(ById(), []).pairs == []
