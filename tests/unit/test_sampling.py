"""Random numbers that are a function of what is sampled, and the inversion of the CDF."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from sparring.generation.sampling import BLOCK, MOST_LOGITS, choose, draw, stream_keys, uniforms

LEVEL = 1e-3  # of every statistical test below; keys are fixed, so a test passes always or never


def keys(count: int, seed: int = 0, iteration: int = 0) -> np.ndarray:
    return stream_keys(seed, iteration, range(count), [0] * count)


# ---------------------------------------------------------------- random numbers


@pytest.mark.parametrize("position", [0, 1, 2, 511])
def test_uniform_across_prompts(position: int) -> None:
    u = uniforms(keys(20_000), position)
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > LEVEL
    counts = np.bincount((u * 64).astype(int), minlength=64)
    assert stats.chisquare(counts).pvalue > LEVEL


def test_uniform_along_positions_and_samples() -> None:
    key = keys(1)
    along = np.array([uniforms(key, position)[0] for position in range(5000)])
    assert stats.kstest(along, "uniform").pvalue > LEVEL
    samples = uniforms(stream_keys(0, 0, [7] * 5000, range(5000)), 0)
    assert stats.kstest(samples, "uniform").pvalue > LEVEL
    seeds = np.array([uniforms(stream_keys(seed, 0, [7], [0]), 0)[0] for seed in range(5000)])
    assert stats.kstest(seeds, "uniform").pvalue > LEVEL


def independent(first: np.ndarray, second: np.ndarray) -> bool:
    """A chi-square test on the 8 x 8 table of two streams, and no two numbers alike."""
    table = np.histogram2d(first, second, bins=8, range=[[0, 1], [0, 1]])[0]
    return stats.chi2_contingency(table).pvalue > LEVEL and not np.any(first == second)


def test_independent_across_everything_that_keys_a_number() -> None:
    count = 20_000
    here = uniforms(keys(count), 0)
    others = {
        "next position": uniforms(keys(count), 1),
        "far position": uniforms(keys(count), 1000),
        "next prompt": np.roll(here, 1),
        "next iteration": uniforms(keys(count, iteration=1), 0),
        "next seed": uniforms(keys(count, seed=1), 0),
        "next sample": uniforms(stream_keys(0, 0, range(count), [1] * count), 0),
    }
    for name, other in others.items():
        assert independent(here, other), name
    # position p of one sample is not position p + 1 of another: streams do not run into each other
    shifted = np.array([uniforms(stream_keys(0, 0, [3], [1]), position)[0] for position in range(2000)])
    own = {uniforms(stream_keys(0, 0, [3], [0]), position)[0] for position in range(2000)}
    assert not own & set(shifted)


def test_a_key_is_a_hash_of_all_four_parts() -> None:
    parts = list(itertools.product((0, 1, 2), (0, 1, 2), (0, 1, 2**64 - 1), (0, 1, 2)))
    made = {int(stream_keys(seed, iteration, [prompt], [sample])[0]) for seed, iteration, prompt, sample in parts}
    assert len(made) == len(parts)
    both = stream_keys(5, 1, [2**64 - 1, 9], [0, 3])
    assert both[1] == stream_keys(5, 1, [9], [3])[0]
    assert both.dtype == np.uint64


def test_numbers_are_those_of_splitmix64() -> None:
    """The published outputs for the state 1234567: a change here would change every run."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    key = np.array([1234567], dtype=np.uint64)
    assert [int(uniforms(key, position)[0] * 2**53) for position in range(4)] == [bits >> 11 for bits in published]


def test_keys_are_pinned() -> None:
    made = stream_keys(7, 1, [3, 2**64 - 1], [0, 2])
    assert [f"{key:016x}" for key in made.tolist()] == ["c77de9ae27e45c88", "13021416205e762c"]


# ---------------------------------------------------------------- choosing


def frequencies(logits: torch.Tensor, count: int, temperature: float = 1.0, top_p: float = 1.0) -> np.ndarray:
    chosen = choose(logits.expand(count, -1), uniforms(keys(count), 0), temperature, top_p)
    return np.bincount(chosen.numpy(), minlength=logits.shape[-1])


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frequencies_are_the_softmax(temperature: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([2.0, -1.0, 0.0, 1.0, 0.5, -30.0]).to(dtype)
    seen = frequencies(logits, 40_000, temperature)
    p = torch.softmax(logits.double() / temperature, -1).numpy()
    assert seen[5] == 0
    assert stats.chisquare(seen[:5], p[:5] / p[:5].sum() * seen[:5].sum()).pvalue > LEVEL
    wrong = torch.softmax(logits.double() / (temperature * 1.1), -1).numpy()
    assert stats.chisquare(seen[:5], wrong[:5] / wrong[:5].sum() * seen[:5].sum()).pvalue < LEVEL


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, [0]), (0.5, [0]), (0.51, [0, 2]), (0.8, [0, 2]), (0.85, [0, 2, 3])])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int]) -> None:
    p = np.array([0.5, 0.05, 0.3, 0.15])
    seen = frequencies(torch.tensor(p).log(), 40_000, top_p=top_p)
    assert sorted(np.flatnonzero(seen)) == kept
    expected = p[kept] / p[kept].sum() * seen.sum()
    if len(kept) > 1:
        assert stats.chisquare(seen[kept], expected).pvalue > LEVEL


def test_temperature_0_is_greedy() -> None:
    logits = torch.randn(500, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(choose(logits, uniforms(keys(500), 0), 0, 1.0), logits.argmax(-1))
    assert torch.equal(choose(logits, uniforms(keys(500), 0), 1e-6, 1.0), logits.argmax(-1))


def test_rows_are_chosen_each_by_its_own_number() -> None:
    logits = torch.randn(64, 30, generator=torch.Generator().manual_seed(1))
    u = uniforms(keys(64), 3)
    together = choose(logits, u, 1.0, 0.9)
    alone = torch.cat([choose(logits[i : i + 1], u[i : i + 1], 1.0, 0.9) for i in range(64)])
    assert torch.equal(together, alone)


# The last is not drawn, but u times a total may be rounded up to the total.
EDGES = [0.0, 2.0**-53, 0.5 - 2.0**-54, 0.5, 1 - 2.0**-32, 1 - 2.0**-53, 1.0]


@pytest.mark.parametrize("u", EDGES)
@pytest.mark.parametrize("top_p", [1.0, 0.999, 0.5])
def test_never_a_token_without_probability(u: float, top_p: float) -> None:
    """Impossible tokens at both ends and in the middle, for u at the ends and on a step of the CDF."""
    low = -float("inf")
    logits = torch.tensor([[low, 0.0, low, 0.0, low], [0.0, low, low, low, low], [low, low, low, low, 0.0]])
    chosen = choose(logits, np.full(3, u), 1.0, top_p)
    assert torch.isfinite(logits[torch.arange(3), chosen]).all()


@pytest.mark.parametrize("size", [3, 1000, 50_257])
def test_u_close_to_1_is_the_last_possible_token(size: int) -> None:
    logits = torch.randn(4, size, generator=torch.Generator().manual_seed(2))
    logits[:, -2:] = -200.0  # underflows to probability 0
    logits[:, -3] = 5.0
    chosen = choose(logits, np.full(4, 1 - 2.0**-53), 1.0, 1.0)
    assert chosen.tolist() == [size - 3] * 4


def test_u_is_inverted_in_the_order_of_ids() -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    for u, token in [
        (0.0, 0),
        (0.0999, 0),
        (0.1001, 1),
        (0.2999, 1),
        (0.3001, 2),
        (0.5999, 2),
        (0.6001, 3),
        (0.9999, 3),
    ]:
        assert choose(p, np.array([u]), 1.0, 1.0).item() == token, u


@pytest.mark.parametrize("size", [5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 20_000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_blocks_and_parts_change_nothing(size: int, temperature: float) -> None:
    """The token that a running sum over the whole vocabulary in fp64 gives, and its log-prob at temperature 1."""
    rows = MOST_LOGITS // 20_000 + 50  # more than one part at the largest size
    logits = 4 * torch.randn(rows, size, generator=torch.Generator().manual_seed(3))
    u = uniforms(keys(rows), 0)
    token, logprob = draw(logits, u, temperature, 1.0)
    cdf = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    near = [torch.searchsorted(cdf, torch.from_numpy(u + shift).unsqueeze(-1)).squeeze(-1) for shift in (-1e-6, 1e-6)]
    assert ((near[0] <= token) & (token <= near[1])).all()
    assert (near[0] == near[1]).double().mean() > 0.9
    expected = torch.log_softmax(logits.double(), -1).gather(-1, token.unsqueeze(-1)).squeeze(-1)
    assert (logprob - expected).abs().max() < 2e-6


def test_positions_may_differ_by_row() -> None:
    key = keys(3)
    apart = [uniforms(key[i : i + 1], position)[0] for i, position in enumerate((4, 0, 9))]
    assert uniforms(key, np.array([4, 0, 9])).tolist() == apart
