"""How far a player's certainty can be believed: expected calibration error (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

from torch import Tensor

BINS = 15


def calibration_error(confidence_N: Tensor, right_N: Tensor) -> float:
    """ECE = Σ_b n_b/N · |share right in bin b - mean confidence in bin b|, over BINS equal bins of (0, 1].

    confidence_N  the probability of the likeliest token at N positions
    right_N       whether it was the real one
    """
    sure_N = confidence_N.double().clamp(0.0, 1.0)
    bin_N = (sure_N * BINS).ceil().long().sub(1).clamp(min=0)
    gap_B = sure_N.new_zeros(BINS).index_add_(0, bin_N, right_N.double() - sure_N)
    return float(gap_B.abs().sum() / len(sure_N))
