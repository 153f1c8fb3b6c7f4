"""How far rewards can be trusted on held-out pairs: accuracy, calibration, what length alone would give.

A pair counts by its weight: a tie, told as two halves, counts once in all that is said. Pairs to one prompt are not
independent, so intervals are by resampling prompts.
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


def _repeated(values: Sequence[Any], often: Sequence[int]) -> list[Any]:
    return [value for value, times in zip(values, often, strict=True) for _ in range(times)]


def _people(votes: Sequence[Sequence[float]], weights: Sequence[float], often: Sequence[int]) -> Row | None:
    found = People.of(_repeated(votes, often))
    pairs = sum(weight for said, weight in zip(votes, weights, strict=True) if len(said) > 1)
    return None if found is None else found.facts() | {"pairs": round(pairs)}


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
    weights           1, or 1/2 where a tie is told as two halves
    """
    mine = wins(chosen, rejected)
    longer = wins([a for a, _ in lengths], [b for _, b in lengths])
    by_length = share(longer, weights, prompts)
    rule = "longer" if by_length["mean"] >= 0.5 else "shorter"
    ruled = longer if rule == "longer" else [1 - value for value in longer]
    gaps = [a - b for a, b in zip(chosen, rejected, strict=True)]
    often = [round(weight / min(weights)) for weight in weights]  # what has no weights is told each row so many times
    higher, lower, spans, apart = (_repeated(values, often) for values in (chosen, rejected, lengths, gaps))
    every, sizes = [*higher, *lower], [n for side in (0, 1) for n in (pair[side] for pair in spans)]
    return {
        "n": round(sum(weights)),
        "prompts": len(set(prompts)),
        "accuracy": share(mine, weights, prompts),
        "ties": round(sum(weight for value, weight in zip(mine, weights, strict=True) if value == 0.5)),
        "longer": by_length,
        "length_rule": rule,
        "over_length": share([a - b for a, b in zip(mine, ruled, strict=True)], weights, prompts),
        "length_correlation": correlation(every, sizes),
        "gap_correlation": correlation(apart, [a - b for a, b in spans]),
        "calibration": reliability(gaps, weights),
        "people": _people(votes, weights, often),
        "chosen_reward": _mean(higher),
        "rejected_reward": _mean(lower),
        "margin": _mean(apart),
        "reward_mean": float(np.mean(every)),
        "reward_deviation": float(np.std(every)),
    }
