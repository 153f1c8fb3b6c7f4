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


def per_token(logprobs: Sequence[float], tokens: Sequence[float], seed: int = 0) -> Interval | None:
    """95 % interval of -sum(logprobs)/sum(tokens), by resampling prompts; None with fewer than FEWEST."""
    if len(logprobs) < FEWEST:
        return None
    data = (-np.asarray(logprobs, dtype=float), np.asarray(tokens, dtype=float))
    found = stats.bootstrap(
        data, _ratio, paired=True, vectorized=True, method="percentile", n_resamples=2000,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def share(values: Sequence[float], weights: Sequence[float], prompts: Sequence[Hashable]) -> dict[str, Any]:
    """The weighted mean of a number per row, with its 95 % interval over prompts (None with fewer than FEWEST).

    Rows to one prompt are not independent: they are drawn together.
    """
    sums: dict[Hashable, list[float]] = {}
    for value, weight, prompt in zip(values, weights, prompts, strict=True):
        one = sums.setdefault(prompt, [0.0, 0.0])
        one[0] += value * weight
        one[1] += weight
    parts = list(sums.values())
    mean = sum(part[0] for part in parts) / sum(part[1] for part in parts)
    found = per_token([-part[0] for part in parts], [part[1] for part in parts])
    return {"mean": mean, "low": found and found[0], "high": found and found[1]}


def difference(mine: Sequence[float], theirs: Sequence[float], tokens: Sequence[int]) -> dict[str, float] | None:
    """Paired difference in NLL per token (mine - theirs; negative is better) with its 95 % interval."""
    gap = [a - b for a, b in zip(mine, theirs, strict=True)]
    interval = per_token(gap, tokens)
    if interval is None:
        return None
    return {"mean": -sum(gap) / sum(tokens), "low": interval[0], "high": interval[1]}
