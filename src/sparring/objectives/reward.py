"""The loss of a reward model on pairs that people, or a plant, have compared: Bradley and Terry's.

p(chosen is preferred) = σ(r(x, y_w) - r(x, y_l)) (Bradley and Terry 1952; as a loss on a language model's answers
Ziegler et al. 2019, arXiv 1909.08593). Only differences count, so a reward's level is free: centring fixes it.

Shapes: B pairs.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bradley_terry(chosen_B: Tensor, rejected_B: Tensor, margin: float = 0.0, smoothing: float = 0.0) -> Tensor:
    """-(1 - s) log σ(m) - s log σ(-m) with m = r_w - r_l - margin, shape [B]; log 2 where m = 0.

    margin     how far the chosen answer's reward should be above the other's (Touvron et al. 2023, arXiv 2307.09288)
    smoothing  s: the share of comparisons that are taken to be the wrong way round
    """
    m_B = chosen_B - rejected_B - margin
    return (1 - smoothing) * F.softplus(-m_B) + smoothing * F.softplus(m_B)


def centring(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """(r_w + r_l)², shape [B]: pulls the mean reward to 0 (Eisenstein et al. 2023, arXiv 2312.09244)."""
    return (chosen_B + rejected_B).square()


def right(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """1 where the chosen answer has the higher reward, ½ at a tie, shape [B], fp64."""
    return (chosen_B > rejected_B).double() + 0.5 * (chosen_B == rejected_B).double()
