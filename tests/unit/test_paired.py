"""Comparisons of arms against hand arithmetic, invariances, and how often the interval holds the truth."""

from __future__ import annotations

import ast
import inspect

import numpy as np
import pytest
from scipy import stats

from sparring.evaluation import paired
from sparring.evaluation.paired import CLAIM, FEW, Difference, Parts, compare, holm, mcnemar, mean_interval, needed
from sparring.evaluation.statistics import FEWEST


def tables(S: int, P: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mine, theirs and weights of a comparison with seeds, prompts, noise and tokens that all vary."""
    rng = np.random.default_rng(seed)
    weights_SP = np.broadcast_to(rng.integers(5, 40, size=P), (S, P)).astype(float)
    theirs_SP = weights_SP * rng.gamma(4.0, 0.25, size=(1, P))
    shift_SP = 0.1 * rng.normal(size=(S, 1)) + 0.3 * rng.normal(size=(1, P)) + 0.2 * rng.normal(size=(S, P)) - 0.2
    return theirs_SP + weights_SP * shift_SP, theirs_SP, weights_SP


def bounds(found: Difference) -> tuple[float, float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.mean, found.low, found.high


def half(found: Difference) -> float:
    mean, low, high = bounds(found)
    return min(mean - low, high - mean)


# ---------------------------------------------------------------- known answers


def test_the_parts_of_a_table_without_residual() -> None:
    """Seed effects −1, 0, 1 (variance 1) and as many prompts at −2 as at 2 (variance 4·12/11), nothing else."""
    gap_SP = np.array([-1.0, 0.0, 1.0])[:, None] + np.array([-2.0, 2.0] * 6) + 5
    found = compare(gap_SP, 0 * gap_SP, np.ones_like(gap_SP), better="lower")
    assert found.parts.seed == pytest.approx(1)
    assert found.parts.prompt == pytest.approx(4 * 12 / 11)
    assert found.parts.residual == pytest.approx(0, abs=1e-12)
    assert found.mean == pytest.approx(5)
    expected = np.sqrt(4.302653**2 / 3 + 2.200985**2 * 4 / 11)  # t quantiles with 2 and 11 degrees of freedom
    assert half(found) == pytest.approx(expected, rel=1e-5)
    assert bounds(found)[2] - 5 == pytest.approx(expected, rel=0.1)  # no skew but the resamples'


def test_one_seed_is_the_t_interval_of_its_prompts() -> None:
    gap = np.random.default_rng(3).normal(0.4, 1.0, size=50)
    found = compare([gap.tolist()], [[0.0] * 50], [[1.0] * 50], better="higher")
    expected = stats.ttest_1samp(gap, 0)
    assert found.seeds == 1
    assert found.parts.seed is None
    assert half(found) == pytest.approx(expected.confidence_interval().high - gap.mean())
    assert found.p == pytest.approx(expected.pvalue, rel=0.2)  # the side towards 0 may be longer: skew
    assert found.p >= expected.pvalue * (1 - 1e-9)


def test_p_and_interval_agree() -> None:
    mine, theirs, weights = tables(3, 40)
    base = compare(mine, theirs, weights, better="lower")
    mean, low, high = bounds(base)
    for bound, inside, outside in ((low, low + 1e-6, low - 1e-6), (high, high - 1e-6, high + 1e-6)):
        at = compare(mine - bound * weights, theirs, weights, better="lower")
        assert at.p == pytest.approx(0.05, abs=1e-6)
        within = compare(mine - inside * weights, theirs, weights, better="lower")
        assert within.p is not None
        assert within.p > 0.05
        beyond = compare(mine - outside * weights, theirs, weights, better="lower")
        assert beyond.p is not None
        assert beyond.p < 0.05
    assert low < mean < high


def test_a_weight_counts_as_its_share() -> None:
    """Twice the tokens at the same gap per token: the same ratio, whatever the scale of the weights."""
    mine, theirs, weights = tables(3, 30)
    first, scaled = compare(mine, theirs, weights, better="lower"), compare(mine, theirs, 2 * weights, better="lower")
    assert np.array(bounds(scaled)) == pytest.approx(np.array(bounds(first)) / 2)
    assert first.mean == pytest.approx((mine - theirs).sum() / weights.sum())
    assert scaled.p == pytest.approx(first.p)


def test_mean_interval_is_a_comparison_with_nothing() -> None:
    mine, _, weights = tables(3, 30)
    found = compare(mine, 0 * mine, weights, better=None)
    assert mean_interval(mine, weights) == bounds(found)
    assert mean_interval(mine[:, :5], weights[:, :5])[1:] == (None, None)


# ---------------------------------------------------------------- invariances


def test_swapped_arms_flip_the_sign() -> None:
    mine, theirs, weights = tables(3, 40)
    one, other = compare(mine, theirs, weights, better="lower"), compare(theirs, mine, weights, better="lower")
    mean, low, high = bounds(one)
    assert bounds(other) == pytest.approx((-mean, -high, -low))
    assert other.p == pytest.approx(one.p)


def test_a_constant_moves_the_interval_and_not_its_length() -> None:
    mine, theirs, _ = tables(3, 40)
    ones = np.ones_like(mine)
    base, moved = compare(mine, theirs, ones, better="lower"), compare(mine + 3, theirs, ones, better="lower")
    assert np.array(bounds(moved)) == pytest.approx(np.array(bounds(base)) + 3)
    same = compare(mine + 3, theirs + 3, ones, better="lower")
    assert bounds(same) == pytest.approx(bounds(base))


def test_the_order_of_seeds_and_prompts_does_not_matter() -> None:
    mine, theirs, weights = tables(4, 40)
    base = compare(mine, theirs, weights, better="lower")
    rng = np.random.default_rng(5)
    order = np.ix_(rng.permutation(4), rng.permutation(40))
    found = compare(mine[order], theirs[order], weights[order], better="lower")
    assert found.mean == pytest.approx(base.mean)
    for part in ("seed", "prompt", "residual"):
        assert getattr(found.parts, part) == pytest.approx(getattr(base.parts, part))
    assert np.array(bounds(found)) == pytest.approx(np.array(bounds(base)), abs=0.1 * half(base))  # other draws
    assert compare(mine, theirs, weights, better="lower") == base  # the same draws


# ---------------------------------------------------------------- cover


@pytest.mark.parametrize("S", [3, 5])
@pytest.mark.parametrize("shares", [(0.9, 0.05, 0.05), (0.05, 0.9, 0.05), (0.34, 0.33, 0.33)])
def test_the_interval_holds_the_truth_as_often_as_it_says(S: int, shares: tuple[float, float, float]) -> None:
    """Shares of seed, prompt and residual in the variance of the mean; the truth is 0."""
    P, runs = 30, 200
    seed, prompt, residual = np.sqrt(np.array(shares) * [S, P, S * P])
    rng = np.random.default_rng(11)
    covered, weights = 0, np.ones((S, P))
    for run in range(runs):
        gap = seed * rng.normal(size=(S, 1)) + prompt * rng.normal(size=(1, P)) + residual * rng.normal(size=(S, P))
        _, low, high = bounds(compare(gap, 0 * gap, weights, better="lower", seed=run))
        covered += low <= 0 <= high
    assert covered / runs >= 0.92


def test_the_bare_bootstrap_of_few_seeds_would_be_too_narrow() -> None:
    rng = np.random.default_rng(12)
    weights = np.ones((3, 20))
    bare = [paired._resampled(rng.normal(size=(3, 1)) + 0 * weights, weights, run) for run in range(200)]
    assert np.mean([low <= 0 <= high for low, high in bare]) < 0.82


# ---------------------------------------------------------------- degenerate tables


def test_equal_arms_differ_by_nothing() -> None:
    mine, _, weights = tables(3, 20)
    found = compare(mine, mine, weights, better="lower")
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert needed(found, 0.01) == (3, FEW)


def test_the_same_gap_everywhere_is_certain() -> None:
    ones = np.ones((3, 20))
    found = compare(1.5 * ones, ones, ones, better="lower")
    assert (found.mean, found.low, found.high, found.p) == (0.5, 0.5, 0.5, 0)


@pytest.mark.parametrize("S", [1, 3])
def test_one_odd_cell_is_no_certain_difference(S: int) -> None:
    mine = np.zeros((S, 200))
    mine[0, 17] = 1
    found = compare(mine, 0 * mine, np.ones_like(mine), better="higher")
    _, low, high = bounds(found)
    assert low < 0 < high
    assert high > -low  # the skew is kept


@pytest.mark.parametrize("P", [1, FEWEST - 1])
@pytest.mark.parametrize("S", [1, 3])
def test_too_few_prompts_have_no_interval(S: int, P: int) -> None:
    found = compare(*tables(S, P), better="lower")
    assert (found.low, found.high, found.p) == (None, None, None)
    assert np.isfinite(found.mean)
    assert needed(found, 10.0) == (S if S > 1 else CLAIM, FEW)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_named(bad: float) -> None:
    mine, theirs, weights = tables(3, 20)
    theirs = theirs.copy()
    theirs[1, 7] = bad
    with pytest.raises(ValueError, match=rf"theirs is {bad} for seed 1, prompt 7"):
        compare(mine, theirs, weights, better="lower")


def test_tables_must_fit() -> None:
    mine, theirs, weights = tables(3, 20)
    with pytest.raises(ValueError, match=r"theirs has 2 seeds of \[2, 3\] prompts"):
        compare(mine, [[1.0, 2.0], [1.0, 2.0, 3.0]], weights, better="lower")
    with pytest.raises(ValueError, match=r"theirs is \(2, 20\) seeds × prompts, but mine is \(3, 20\)"):
        compare(mine, theirs[:2], weights, better="lower")
    with pytest.raises(ValueError, match="every weight must be above 0"):
        compare(mine, theirs, 0 * weights, better="lower")
    with pytest.raises(ValueError, match="mine has 0 seeds"):
        compare([], [], [], better="lower")


# ---------------------------------------------------------------- corrections and tests


def test_holm_against_a_worked_example() -> None:
    """0.005·4 = .02, .01·3 = .03, .03·2 = .06, .04·1 → .06 (not below the one before)."""
    found = holm({"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.005})
    assert list(found) == ["c", "a", "d", "b"]
    assert found == pytest.approx({"a": 0.03, "b": 0.02, "c": 0.06, "d": 0.06})
    assert holm({"one": 0.04}) == {"one": 0.04}
    assert holm({"one": 0.9, "two": 0.8}) == {"one": 1.0, "two": 1.0}
    assert holm({}) == {}
    with pytest.raises(ValueError, match="p of one is nan"):
        holm({"one": float("nan")})


def test_mcnemar_of_one_seed_is_binomial() -> None:
    """8 prompts only mine, 2 only theirs: 2·(1 + 10 + 45)/1024."""
    mine, theirs = [1] * 8 + [0] * 2 + [1, 0], [0] * 8 + [1] * 2 + [1, 0]
    assert mcnemar([mine], [theirs]) == pytest.approx(2 * 56 / 1024)
    assert mcnemar([theirs], [mine]) == pytest.approx(2 * 56 / 1024)
    assert mcnemar([mine], [mine]) == 1


def test_mcnemar_of_several_seeds_takes_a_prompt_as_a_cluster() -> None:
    """b − c by prompt: 2, 2, 1, −1, 0, so X² = 4²/10."""
    mine = [[1, 1, 1, 0, 1], [1, 1, 0, 0, 0]]
    theirs = [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert mcnemar(mine, theirs) == pytest.approx(stats.chi2.sf(1.6, 1))
    assert mcnemar(mine, mine) == 1


def test_seeds_that_agree_are_no_new_evidence_to_mcnemar() -> None:
    mine, theirs = [1] * 8 + [0] * 2, [0] * 8 + [1] * 2
    assert mcnemar([mine] * 2, [theirs] * 2) == pytest.approx(mcnemar([mine] * 20, [theirs] * 20))


def test_mcnemar_refuses_shares() -> None:
    with pytest.raises(ValueError, match=r"theirs holds 0\.25, not only 0 and 1; use compare"):
        mcnemar([[1, 0]], [[0.25, 1]])


# ---------------------------------------------------------------- how many


def with_parts(S: int, P: int, seed: float | None, prompt: float, residual: float) -> Difference:
    return Difference(0.1, -1.0, 1.0, 0.5, S, P, "lower", Parts(seed, prompt, residual))


def test_more_seeds_where_they_are_what_lacks() -> None:
    """Seed variance 1, half-width 1: t(S − 1)/√S ≤ 1 needs 7 seeds (2.447/√7 = .92; with 6 it is 1.05)."""
    assert needed(with_parts(3, 50, 1.0, 0.0, 0.0), 1.0) == (7, 50)
    assert needed(with_parts(9, 50, 1.0, 0.0, 0.0), 1.0) == (9, 50)


def test_more_prompts_where_no_number_of_seeds_does() -> None:
    found = with_parts(3, 50, 0.01, 4.0, 1.0)
    seeds, prompts = needed(found, 0.2)
    assert prompts > 50
    assert paired._half(found.parts, seeds, prompts) <= 0.2
    assert seeds == 3 or paired._half(found.parts, seeds - 1, prompts) > 0.2
    assert prompts >= 2 * 4.0 * (1.96 / 0.2) ** 2


def test_what_is_needed_is_enough_when_it_is_measured() -> None:
    mine, theirs, weights = tables(3, 40)
    found = compare(mine, theirs, weights, better="lower")
    assert half(found) > 0.15
    seeds, prompts = needed(found, 0.15)
    assert seeds > 3
    assert half(compare(*tables(seeds, prompts), better="lower")) < half(found)


def test_one_seed_needs_more() -> None:
    assert needed(with_parts(1, 100, None, 0.01, 0.0), 1.0) == (CLAIM, 100)
    with pytest.raises(ValueError, match="must be above 0"):
        needed(with_parts(3, 100, 0.0, 1.0, 0.0), 0.0)


def test_no_torch_is_needed() -> None:
    tree = ast.parse(inspect.getsource(paired))
    roots = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert roots == {"__future__", "collections", "dataclasses", "typing", "numpy", "scipy", "sparring"}
