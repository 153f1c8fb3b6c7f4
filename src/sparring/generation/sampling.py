"""Sampling that does not depend on batching: inverse CDF with counter-based random numbers.

The random number of a token is a hash of (seed, iteration, prompt, sample, position), so the same
answer comes out for any batch size, order of prompts, number of processes, or restart.
Shapes: B rows, V vocabulary, N blocks of it, K tokens of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

BLOCK = 256  # tokens whose probabilities are summed first when the CDF is inverted

# Logits looked at in one go: 8 MiB in fp32. The C library maps larger tensors anew each time, page by page.
MOST_LOGITS = 2**21


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


def uniforms(keys_B: Keys, position: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Random numbers in [0, 1) with 53 bits for the `position`-th token of each row, shape [B].

    position  one for all rows, or [B]
    """
    counter = np.asarray(position).astype(np.uint64)
    bits = _mix(keys_B + (counter + np.uint64(1)) * np.array([_GOLDEN]))
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def choose(logits_BV: Tensor, u_B: NDArray[np.float64], temperature: float, top_p: float) -> Tensor:
    """Token ids [B] by inverting the CDF at u. temperature 0 is greedy; top_p < 1 keeps the nucleus."""
    return draw(logits_BV, u_B, temperature, top_p)[0]


def draw(logits_BV: Tensor, u_B: NDArray[np.float64], temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """(token ids, their log-probs), each [B]: the tokens that `choose` takes.

    The log-probs are the player's own, in nats and fp64: at temperature 1, whatever the temperature and top_p.
    """
    rows = max(1, MOST_LOGITS // logits_BV.shape[-1]) if logits_BV.device.type == "cpu" else len(logits_BV)
    parts = [
        _draw(logits_BV[start : start + rows], u_B[start : start + rows], temperature, top_p)
        for start in range(0, len(logits_BV), rows)
    ]
    return torch.cat([token_B for token_B, _ in parts]), torch.cat([logprob_B for _, logprob_B in parts])


def _draw(logits_BV: Tensor, u_B: NDArray[np.float64], temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    raw_BV = logits_BV.float()
    peak_B1 = raw_BV.amax(dim=-1, keepdim=True)
    weight_BV = (raw_BV - peak_B1).exp_()
    sums_BN = _block_sums(weight_BV)
    total_B = sums_BN.sum(dim=-1)
    if temperature == 0:
        token_B = raw_BV.argmax(dim=-1)
    elif temperature == 1 and top_p == 1:
        token_B = _invert(weight_BV, sums_BN, u_B)
    else:
        p_BV = torch.softmax((raw_BV - peak_B1) / temperature, dim=-1)
        p_BV = _nucleus(p_BV, top_p) if top_p < 1 else p_BV
        token_B = _invert(p_BV, _block_sums(p_BV), u_B)
    shifted_B = (raw_BV.gather(-1, token_B.unsqueeze(-1)) - peak_B1).squeeze(-1)
    return token_B, shifted_B.double() - total_B.log()


def _block_sums(weight_BV: Tensor) -> Tensor:
    """Sums over blocks of BLOCK tokens in fp64, shape [B, N]; the last block may be shorter."""
    whole = weight_BV.shape[-1] // BLOCK * BLOCK
    sums_BN = weight_BV[:, :whole].view(len(weight_BV), -1, BLOCK).sum(dim=-1)
    rest_B1 = weight_BV[:, whole:].sum(dim=-1, keepdim=True)
    return torch.cat([sums_BN, rest_B1], dim=-1).double()


def _invert(weight_BV: Tensor, sums_BN: Tensor, u_B: NDArray[np.float64]) -> Tensor:
    """The token at which the running sum of the weights passes u times their sum, shape [B].

    First the block, then the token in it: running sums over a whole vocabulary in fp64 are slow.
    """
    cdf_BN = sums_BN.cumsum(dim=-1)
    threshold_B1 = torch.from_numpy(u_B).to(cdf_BN.device).unsqueeze(-1) * cdf_BN[:, -1:]
    block_B1 = _passed(cdf_BN, threshold_B1)
    before_B1 = (cdf_BN - sums_BN).gather(-1, block_B1)
    column_BK = block_B1 * BLOCK + torch.arange(BLOCK, device=cdf_BN.device)
    inside_BK = weight_BV.gather(-1, column_BK.clamp(max=weight_BV.shape[-1] - 1)).double()
    inside_BK = inside_BK.masked_fill(column_BK >= weight_BV.shape[-1], 0.0)
    place_B1 = _passed(inside_BK.cumsum(dim=-1), threshold_B1 - before_B1)
    return (block_B1 * BLOCK + place_B1).squeeze(-1)


def _passed(cdf_BN: Tensor, threshold_B1: Tensor) -> Tensor:
    """The first place [B, 1] whose running sum exceeds the threshold.

    u < 1, but rounding may lift the threshold to the whole sum: then the last place that adds anything.
    """
    last_B1 = (cdf_BN < cdf_BN[:, -1:]).sum(dim=-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cdf_BN, threshold_B1, right=True), last_B1)


def _nucleus(p_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2020)."""
    sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    keep_BV = torch.zeros_like(p_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV < top_p)
    return p_BV * keep_BV
