"""How far rewards can be trusted on held-out pairs: accuracy, calibration, what length alone would give.

A pair counts by its weight. Pairs to one prompt are not independent, so intervals are by resampling prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sparring.evaluation.people import People
from sparring.evaluation.statistics import share

BINS = 8
Row = dict[str, Any]


def wins(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """1 where the first is larger, 0 where it is smaller, ½ at a tie."""
    return [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in zip(first, second, strict=True)]


def reliability(gaps: Sequence[float], weights: Sequence[float]) -> Row:
    """How often the preferred answer is the one the model is so sure of: bins of σ(|gap|), and what they amount to.

    gaps  r(chosen) - r(rejected). ece: Σ share·|accuracy - confidence|; log_loss: mean -log σ(gap), log 2 for no idea.
    """
    gap_N, weight_N = np.asarray(gaps, dtype=float), np.asarray(weights, dtype=float)
    sure_N = 1 / (1 + np.exp(-np.minimum(np.abs(gap_N), 700)))
    right_N = np.where(gap_N > 0, 1.0, np.where(gap_N < 0, 0.0, 0.5))
    place_N = np.minimum(((sure_N - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = []
    for place in range(BINS):
        inside = place_N == place
        total = float(weight_N[inside].sum())
        if total:
            confidence = float((sure_N * weight_N)[inside].sum() / total)
            bins.append([confidence, float((right_N * weight_N)[inside].sum() / total), total])
    whole = float(weight_N.sum())
    ece = sum(total * abs(right - confidence) for confidence, right, total in bins) / whole
    log_loss = float((np.logaddexp(0, -gap_N) * weight_N).sum() / whole)
    return {"bins": bins, "ece": ece, "log_loss": log_loss, "no_idea": math.log(2)}


def correlation(rewards: Sequence[float], lengths: Sequence[int]) -> Row:
    """Pearson's and Spearman's correlation of rewards with answer lengths; None where one of them is constant."""
    if len(set(rewards)) < 2 or len(set(lengths)) < 2:
        return {"pearson": None, "spearman": None}
    linear, ranks = stats.pearsonr(rewards, lengths), stats.spearmanr(rewards, lengths)
    return {"pearson": float(linear.statistic), "spearman": float(ranks.statistic)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def measure_pairs(
    chosen: Sequence[float],
    rejected: Sequence[float],
    lengths: Sequence[tuple[int, int]],
    weights: Sequence[float],
    prompts: Sequence[Hashable],
    votes: Sequence[Sequence[float]],
) -> Row:
    """All that is said of a reward model on N held-out pairs.

    chosen, rejected  rewards of the two answers; lengths: their tokens
    """
    mine, people = wins(chosen, rejected), People.of(votes)
    longer = wins([a for a, _ in lengths], [b for _, b in lengths])
    by_length = share(longer, weights, prompts)
    rule = "longer" if by_length["mean"] >= 0.5 else "shorter"
    ruled = longer if rule == "longer" else [1 - value for value in longer]
    every, sizes = [*chosen, *rejected], [n for side in (0, 1) for n in (pair[side] for pair in lengths)]
    gaps = [a - b for a, b in zip(chosen, rejected, strict=True)]
    return {
        "n": len(mine),
        "prompts": len(set(prompts)),
        "accuracy": share(mine, weights, prompts),
        "ties": sum(value == 0.5 for value in mine),
        "longer": by_length,
        "length_rule": rule,
        "over_length": share([a - b for a, b in zip(mine, ruled, strict=True)], weights, prompts),
        "length_correlation": correlation(every, sizes),
        "gap_correlation": correlation(gaps, [a - b for a, b in lengths]),
        "calibration": reliability(gaps, weights),
        "people": people and people.facts(),
        "chosen_reward": _mean(chosen),
        "rejected_reward": _mean(rejected),
        "margin": _mean(gaps),
        "reward_mean": float(np.mean(every)),
        "reward_deviation": float(np.std(every)),
    }
