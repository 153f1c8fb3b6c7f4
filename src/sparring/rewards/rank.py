"""What is done with scores: the best of n answers, what that gives as n grows, and pairs kept or dropped by a scorer.

Shapes: P prompts, N answers to each.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparring.data.pairs import Pair
from sparring.errors import RewardError
from sparring.evaluation.statistics import per_token
from sparring.rewards.scorer import Answered, Scorer


def scores_of(scorer: Scorer, answers: Sequence[Sequence[Answered]]) -> list[list[float]]:
    """Scores [P][N]; prompts may have different numbers of answers. One call, so that a model is seated once."""
    flat = iter(scorer([answer for row in answers for answer in row]))
    return [[next(flat) for _ in row] for row in answers]


def best(scores: Sequence[float]) -> int:
    """The index of the highest score, the first of equal ones."""
    if not scores:
        raise RewardError("there is no answer to choose from; sample one at the least")
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


# ---------------------------------------------------------------- quality against n


@dataclass(frozen=True, slots=True)
class BestOf:
    """What choosing the best of n gives.

    kl         bound on KL(best of n ‖ the sampler), nats per answer: log n - (n-1)/n (Beirami et al. 2024, arXiv
               2401.01879); exact where no two answers have the same score
    quality    mean over rows; low, high: its 95 % interval over prompts, None with fewer than ten
    gain       quality less that of the first n, row by row: mean, low, high
    """

    n: int
    kl: float
    quality: float
    low: float | None
    high: float | None
    gain: tuple[float, float | None, float | None]


def kl_bound(n: int) -> float:
    """log n - (n-1)/n, in nats."""
    return math.log(n) - (n - 1) / n


def expected_best(scores: Sequence[float], quality: Sequence[float], n: int) -> float:
    """The mean quality of the best by score of n answers, over all subsets of n of the N that there are.

    That is unbiased, and varies less than one draw of n. Among equal scores each is chosen as often.
    """
    if len(scores) != len(quality) or not 1 <= n <= len(scores):
        raise RewardError(f"the best of {n} needs at least {n} answers with a score and a quality, not {len(scores)}")
    total, below = math.comb(len(scores), n), 0
    found = 0.0
    for score in sorted(set(scores)):
        same = [q for s, q in zip(scores, quality, strict=True) if s == score]
        # subsets whose best has this score: all within what is at most as high, but not all below
        chosen = math.comb(below + len(same), n) - math.comb(below, n)
        found += chosen / total * (math.fsum(same) / len(same))
        below += len(same)
    return found


def curve(
    scores: Sequence[Sequence[float]],
    prompts: Sequence[Hashable],
    quality: Sequence[Sequence[float]] | None = None,
    ns: Sequence[int] | None = None,
) -> list[BestOf]:
    """Quality against n, by the answers to P rows.

    scores   [P][N] by which the best is chosen
    prompts  [P] which prompt a row belongs to, the unit of the intervals
    quality  [P][N] of what it is judged by; default: the scores themselves, which flatter the scorer
    ns       default: powers of two up to the fewest answers that a prompt has, and that number
    """
    fewest = min(map(len, scores), default=0)
    ns = ns or sorted({*(2**k for k in range(fewest.bit_length())), fewest})
    each = [[expected_best(s, q, n) for s, q in zip(scores, quality or scores, strict=True)] for n in ns]
    gains = [[a - b for a, b in zip(values, each[0], strict=True)] for values in each]
    return [
        BestOf(n, kl_bound(n), *_mean(values, prompts), _mean(gain, prompts))
        for n, values, gain in zip(ns, each, gains, strict=True)
    ]


def _mean(values: Sequence[float], prompts: Sequence[Hashable]) -> tuple[float, float | None, float | None]:
    """Mean over rows with its interval over prompts."""
    interval = per_token([-value for value in values], [1] * len(values), prompts) or (None, None)
    return float(np.mean(values)), *interval


# ---------------------------------------------------------------- pairs


@dataclass(frozen=True, slots=True)
class Kept:
    """Pairs after a scorer has looked at them. answers: synthetic ones before, and those that stayed."""

    pairs: list[Pair]
    answers: int
    kept: int


def filter_pairs(scorer: Scorer, pairs: Sequence[Pair], gap: float = 0.0) -> Kept:
    """Keep of each pair the synthetic answers that score more than `gap` below its real one; others teach the wrong."""
    real, synthetic = _both(scorer, pairs)
    kept = []
    for pair, mine, theirs in zip(pairs, real, synthetic, strict=True):
        chosen = [k for k, score in enumerate(theirs) if mine - score > gap]
        if chosen:
            kept.append(
                replace(
                    pair,
                    synthetic_ids=[pair.synthetic_ids[k] for k in chosen],
                    opponent_synthetic=[pair.opponent_synthetic[k] for k in chosen],
                )
            )
    return Kept(kept, sum(map(len, synthetic)), sum(len(pair.synthetic_ids) for pair in kept))


def _both(scorer: Scorer, pairs: Sequence[Pair]) -> tuple[list[float], list[list[float]]]:
    """Scores of every real answer, and of the synthetic ones."""
    rows = [
        [Answered(pair.prompt_ids, ids, pair.real_ids) for ids in (pair.real_ids, *pair.synthetic_ids)]
        for pair in pairs
    ]
    found = scores_of(scorer, rows)
    return [row[0] for row in found], [row[1:] for row in found]
