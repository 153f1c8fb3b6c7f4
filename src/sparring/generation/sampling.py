"""Sampling that does not depend on batching: inverse CDF with counter-based random numbers.

The random number of a token is a hash of (seed, iteration, prompt, sample, position), so the same
answer comes out for any batch size, order of prompts, number of processes, or restart.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream_keys(seed: int, iteration: int, prompts: Sequence[int] | Keys, samples: Sequence[int]) -> Keys:
    """One 64-bit key per row from (seed, iteration, prompt key, sample number); both sequences [B]."""
    key = np.full(len(prompts), np.uint64(seed), dtype=np.uint64)
    parts = (
        np.full(len(prompts), np.uint64(iteration), dtype=np.uint64),
        np.asarray(prompts, dtype=np.uint64),
        np.asarray(samples, dtype=np.uint64),
    )
    for part in parts:
        key = _mix(_mix(key + _GOLDEN) ^ part)
    return key


def uniforms(keys_B: Keys, position: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1) with 53 bits for the `position`-th token of each row, shape [B]."""
    counter = np.uint64((position + 1) * int(_GOLDEN) % 2**64)
    bits = _mix(keys_B + counter)
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def choose(logits_BV: Tensor, u_B: NDArray[np.float64], temperature: float, top_p: float) -> Tensor:
    """Token ids [B] by inverting the CDF at u. temperature 0 is greedy; top_p < 1 keeps the nucleus."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    p_BV = torch.softmax(logits_BV.float() / temperature, dim=-1)
    if top_p < 1:
        p_BV = _nucleus(p_BV, top_p)
    cdf_BV = p_BV.cumsum(dim=-1, dtype=torch.float64)
    total_B1 = cdf_BV[:, -1:]
    threshold_B1 = torch.from_numpy(u_B).to(cdf_BV.device).unsqueeze(-1) * total_B1
    index_B = torch.searchsorted(cdf_BV, threshold_B1, right=True).squeeze(-1)
    # u < 1, but u * total may round up to total: the last token that has any probability.
    last_B = (cdf_BV < total_B1).sum(dim=-1)
    return torch.minimum(index_B, last_B)


def _nucleus(p_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2020)."""
    sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    keep_BV = torch.zeros_like(p_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV < top_p)
    return p_BV * keep_BV
