"""Intervals: bootstrap over prompts, the unit that was sampled."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Interval = tuple[float, float]
FEWEST = 10  # prompts; with fewer, a bootstrap shows little but the extremes


def _ratio(total: Any, tokens: Any, axis: int = -1) -> Any:
    return total.sum(axis=axis) / tokens.sum(axis=axis)


def together(prompts: Sequence[Hashable], *columns: Sequence[float]) -> list[list[float]]:
    """Each column summed by prompt, in the order in which prompts first come: the rows to one prompt are one unit."""
    places: dict[Hashable, int] = {}
    index = [places.setdefault(prompt, len(places)) for prompt in prompts]
    sums = [[0.0] * len(places) for _ in columns]
    for column, total in zip(columns, sums, strict=True):
        for place, value in zip(index, column, strict=True):
            total[place] += value
    return sums


def per_token(
    logprobs: Sequence[float], tokens: Sequence[float], prompts: Sequence[Hashable], seed: int = 0
) -> Interval | None:
    """95 % interval of -sum(logprobs)/sum(tokens), by resampling prompts; None with fewer than FEWEST of them.

    prompts  which prompt each row belongs to. Rows to one prompt are not independent: they are drawn together
    """
    sums = together(prompts, logprobs, tokens)
    if len(sums[0]) < FEWEST:
        return None
    data = (-np.asarray(sums[0]), np.asarray(sums[1]))
    found = stats.bootstrap(
        data, _ratio, paired=True, vectorized=True, method="percentile", n_resamples=2000,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def share(values: Sequence[float], weights: Sequence[float], prompts: Sequence[Hashable]) -> dict[str, Any]:
    """The weighted mean of a number per row, with its 95 % interval over prompts (None with fewer than FEWEST)."""
    worths = [value * weight for value, weight in zip(values, weights, strict=True)]
    found = per_token([-value for value in worths], weights, prompts)
    worths, weights = together(prompts, worths, weights)
    mean = sum(worths) / sum(weights)
    return {"mean": mean, "low": found and found[0], "high": found and found[1]}


def difference(
    mine: Sequence[float], theirs: Sequence[float], tokens: Sequence[int], prompts: Sequence[Hashable]
) -> dict[str, float] | None:
    """Paired difference in NLL per token (mine - theirs; negative is better) with its 95 % interval over prompts."""
    gap = [a - b for a, b in zip(mine, theirs, strict=True)]
    interval = per_token(gap, tokens, prompts)
    if interval is None:
        return None
    return {"mean": -sum(gap) / sum(tokens), "low": interval[0], "high": interval[1]}
