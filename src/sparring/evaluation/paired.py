"""Arms compared over seeds and prompts: intervals, p, and how many seeds and prompts a difference would need.

An arm gives a table of numbers and one of weights, seeds × prompts; its metric is sum(numbers)/sum(weights), as
`metrics.columns` gives them. Both seeds and prompts were sampled, so both are part of the chance in a difference.

Shapes: S seeds, P prompts, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from sparring.evaluation.statistics import FEWEST

Key = TypeVar("Key")
Numbers = Sequence[Sequence[float]] | NDArray[Any]
Table = NDArray[np.float64]

RESAMPLES = 2000
CELLS = 2**20  # numbers in one batch of resamples
FEW = 30  # prompts; with fewer an interval is rough
CLAIM = 5  # seeds for a claim
MOST = 100  # seeds; where more would be needed, more prompts are cheaper
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Parts:
    """Variances of one number, in the metric's unit squared, as a two-way table gives them (none below 0).

    seed      of what a seed shifts in all prompts; None with one seed: not known
    prompt    of what a prompt shifts in all seeds; None with one prompt. With one seed it holds the rest as well
    residual  of the rest; None with one prompt
    """

    seed: float | None = None
    prompt: float | None = None
    residual: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Mine − theirs in a metric's own unit, with its 95 % interval; low, high and p are None with too few prompts.

    p is two-sided and uncorrected: below 0.05 exactly where the interval excludes 0.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    seeds: int
    prompts: int
    better: Literal["lower", "higher"] | None
    parts: Parts


def compare(
    mine_SP: Numbers,
    theirs_SP: Numbers,
    weights_SP: Numbers,
    *,
    better: Literal["lower", "higher"] | None,
    seed: int = 0,
) -> Difference:
    """Paired difference sum(mine − theirs)/sum(weights) with a seed × prompt bootstrap interval of 95 %.

    Seeds and prompts are resampled independently ("pigeonhole" bootstrap; Owen 2007, doi 10.1214/07-AOAS122). Its
    percentile interval is too narrow for few seeds and too wide for much residual, so it is stretched about the mean
    until its half-width is h; it keeps its skew, but neither side is made shorter than h:

        h² = t²(S − 1) seed/S + t²(P − 1) (prompt/P + residual/SP)

    with the variances of `Parts` and the 97.5 % quantiles of Student's t. Two seeds tell seed and residual apart so
    badly that the residual then counts with t(1). One seed: prompts alone are resampled, and seeds are not in h.

    Cover in % where seed, prompt and residual have the shares of the heading in the variance of the mean (normal
    numbers, 40 prompts, 2000 tables each, so ± 1), with that of the bare percentile interval in brackets:

                 .90 .05 .05    .05 .90 .05    .34 .33 .33    0 0 1
        S = 2    99.8 (74.5)    100 (93.4)     100 (94.5)     100 (99.3)
        S = 3    94.3 (83.2)    96.2 (93.7)    95.0 (96.2)    97.9 (99.5)
        S = 5    95.9 (88.4)    95.2 (94.5)    94.5 (97.2)    97.8 (99.8)

    One quantile with Satterthwaite's degrees of freedom instead covered less: 88.5, 93.7 and 95.8 in the first column,
    91.8, 93.8 and 94.2 in the third, since it thinks a small seed variance found by chance is well known.

    Raises ValueError if seeds have different prompts, tables differ in shape, a number is not finite or a weight not
    above 0.
    """
    mine = _table("mine", mine_SP)
    theirs = _table("theirs", theirs_SP, mine.shape)
    weights = _weights(weights_SP, mine.shape)
    return _difference(mine - theirs, weights, better, seed)


def mean_interval(numbers_SP: Numbers, weights_SP: Numbers, seed: int = 0) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of one arm, by the same bootstrap as `compare`; None, None with fewer than FEWEST prompts."""
    numbers = _table("numbers", numbers_SP)
    found = _difference(numbers, _weights(weights_SP, numbers.shape), None, seed)
    return found.mean, found.low, found.high


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """p adjusted for all comparisons together, in the order given (Holm 1979, step down); ValueError outside 0 to 1."""
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for done, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        if not 0 <= value <= 1:
            raise ValueError(f"p of {name} is {value}; a p lies from 0 to 1")
        largest = max(largest, min(1.0, (len(p) - done) * value))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def mcnemar(mine_SP: Numbers, theirs_SP: Numbers) -> float:
    """Two-sided p that two arms match equally often, from tables of 0 and 1.

    One seed: the exact binomial test of the discordant prompts (McNemar 1947). Several: prompts are clusters of S
    pairs, with b prompts' pairs that only mine matched and c that only theirs did, and

        X² = (sum_P (b − c)/S)² / sum_P ((b − c)/S)²,  chi-square with 1 degree of freedom

    (Durkalski et al. 2003, doi 10.1002/sim.1438). It takes the seeds as they are: for a claim about other seeds, see
    `compare`. ValueError for numbers other than 0 and 1, such as shares of several answers: `compare` takes those.
    """
    mine = _table("mine", mine_SP)
    theirs = _table("theirs", theirs_SP, mine.shape)
    for arm, table in (("mine", mine), ("theirs", theirs)):
        if not np.isin(table, (0, 1)).all():
            shown = table[~np.isin(table, (0, 1))][0]
            raise ValueError(f"{arm} holds {shown:g}, not only 0 and 1; use compare for shares of several answers")
    gap_SP = mine - theirs
    if len(gap_SP) == 1:
        won, lost = int((gap_SP > 0).sum()), int((gap_SP < 0).sum())
        return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    gap_P = gap_SP.sum(0)  # integers; S cancels
    squares = float((gap_P**2).sum())
    return float(stats.chi2.sf(gap_P.sum() ** 2 / squares, 1)) if squares else 1.0


def needed(difference: Difference, smallest: float) -> tuple[int, int]:
    """(seeds, prompts) that would make the half-width h of `compare` at most `smallest`, if the variances are right.

    Never less than there is, 2 seeds and FEW prompts. More seeds if up to MOST of them do; otherwise first enough
    prompts that they take half of smallest², then seeds. One seed says nothing of other seeds: then at least CLAIM
    seeds, of no variance, which is a lower bound. ValueError if `smallest` is not above 0.
    """
    if not smallest > 0:
        raise ValueError(f"smallest is {smallest}; it must be above 0")
    parts = difference.parts
    seeds = difference.seeds if difference.seeds > 1 else CLAIM
    prompts = max(difference.prompts, FEW)
    if parts.prompt is None or _half(parts, seeds, prompts) <= smallest:
        return seeds, prompts
    if _half(parts, max(seeds, MOST), prompts) > smallest:
        t = float(stats.t.isf(LEVEL / 2, prompts - 1))
        prompts = max(prompts, math.ceil(2 * parts.prompt * (t / smallest) ** 2))
    return _first(seeds, lambda S: _half(parts, S, prompts) <= smallest), prompts


# ---------------------------------------------------------------- tables


def _table(name: str, rows: Numbers, shape: tuple[int, ...] | None = None) -> Table:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"{name} has {len(rows)} seeds of {sorted(lengths)} prompts; give at least one seed, and every seed the "
            "same test prompts"
        )
    table = np.asarray(rows, dtype=np.float64)
    if shape is not None and table.shape != shape:
        raise ValueError(f"{name} is {table.shape} seeds × prompts, but mine is {shape}; both arms need the same")
    wrong = np.argwhere(~np.isfinite(table))
    if len(wrong):
        s, p = wrong[0]
        raise ValueError(
            f"{name} is {table[s, p]} for seed {s}, prompt {p} (counted from 0); leave that prompt out of every arm "
            "and seed"
        )
    return table


def _weights(rows: Numbers, shape: tuple[int, ...]) -> Table:
    table = _table("weights", rows, shape)
    if table.min() <= 0:
        raise ValueError(f"weights hold {table.min():g}; every weight must be above 0")
    return table


# ---------------------------------------------------------------- the interval


def _difference(gap_SP: Table, weights_SP: Table, better: Literal["lower", "higher"] | None, seed: int) -> Difference:
    S, P = gap_SP.shape
    mean = float(gap_SP.sum() / weights_SP.sum())
    parts = _parts((gap_SP - mean * weights_SP) / weights_SP.mean())  # a ratio, made linear about its mean
    if P < FEWEST:
        return Difference(mean, None, None, None, S, P, better, parts)
    below, above = _sides(_resampled(gap_SP, weights_SP, seed), mean, _half(parts, S, P))
    p = _p(abs(mean), below if mean > 0 else above, parts, S, P)
    return Difference(mean, mean - below, mean + above, p, S, P, better, parts)


def _parts(rest_SP: Table) -> Parts:
    """Variance components of a two-way table without repeats, from its mean squares."""
    S, P = rest_SP.shape
    if P == 1:
        return Parts()
    seed_S, prompt_P = rest_SP.mean(1), rest_SP.mean(0)
    if S == 1:
        return Parts(prompt=float(prompt_P.var(ddof=1)), residual=0.0)
    rest = rest_SP - seed_S[:, None] - prompt_P + rest_SP.mean()
    residual = float((rest**2).sum() / ((S - 1) * (P - 1)))
    return Parts(
        seed=max(0.0, float(seed_S.var(ddof=1)) - residual / P),
        prompt=max(0.0, float(prompt_P.var(ddof=1)) - residual / S),
        residual=residual,
    )


def _half(parts: Parts, S: int, P: int, level: float = LEVEL) -> float:
    """Half-width of the interval of `compare` for S seeds × P prompts."""
    assert parts.prompt is not None
    assert parts.residual is not None
    seed, residual = (parts.seed or 0.0) / S, parts.residual / (S * P)
    if S == 2:
        seed, residual = seed + residual, 0.0
    square = stats.t.isf(level / 2, P - 1) ** 2 * (parts.prompt / P + residual)
    if S > 1:
        square += stats.t.isf(level / 2, S - 1) ** 2 * seed
    return math.sqrt(square)


def _resampled(gap_SP: Table, weights_SP: Table, seed: int) -> tuple[float, float]:
    """Percentile interval of the ratio over resampled seeds and, independently of them, resampled prompts."""
    S, P = gap_SP.shape

    def ratio(*drawn: Any, axis: int = -1) -> Any:
        rows_BS, columns_BP = drawn if S > 1 else (np.zeros((len(drawn[0]), 1), dtype=int), drawn[0])
        totals_B = [
            np.take_along_axis(table[rows_BS].sum(1), columns_BP, axis).sum(axis) for table in (gap_SP, weights_SP)
        ]
        return totals_B[0] / totals_B[1]

    samples = (np.arange(S), np.arange(P)) if S > 1 else (np.arange(P),)
    found = stats.bootstrap(
        samples, ratio, paired=False, vectorized=True, method="percentile", n_resamples=RESAMPLES,
        batch=max(1, CELLS // (S * P)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _sides(bare: tuple[float, float], mean: float, half: float) -> tuple[float, float]:
    """How far the interval goes below and above the mean.

    A side shorter than `half` would let one prompt among equal ones make a difference that is certain.
    """
    low, high = bare
    stretch = 2 * half / (high - low) if high > low else 0.0
    return max(half, stretch * (mean - low)), max(half, stretch * (high - mean))


def _p(distance: float, side: float, parts: Parts, S: int, P: int) -> float:
    """The level at which the interval's side towards 0 would just reach it: its length goes as `_half`."""
    if distance == 0:
        return 1.0
    if side == 0:
        return 0.0
    share = side / _half(parts, S, P)
    smallest = 1e-15

    def reach(exponent: float) -> float:
        return share * _half(parts, S, P, 10**exponent) - distance

    if reach(math.log10(smallest)) < 0:
        return smallest
    return float(10 ** optimize.brentq(reach, math.log10(smallest), 0.0, xtol=1e-12))


def _first(lowest: int, fits: Callable[[int], bool]) -> int:
    """The smallest whole number from `lowest` that fits, where all above it fit as well."""
    high = lowest
    while not fits(high):
        low, high = high, 2 * high
    if high == lowest:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
