"""Losses on pairs: the real answer against what the opponent would have said, or the chosen one against the rejected.

SPIN (Chen et al. 2024, arXiv 2401.01335, eq. 4.7) and DPO (Rafailov et al. 2023, arXiv 2305.18290,
eq. 7) share one margin of four log-probabilities; the losses below differ only in l(margin). In DPO the
opponent is the reference.

Shapes: B prompts, K synthetic answers each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def margin(
    player_real_B: Tensor,
    player_synthetic_BK: Tensor,
    opponent_real_B: Tensor,
    opponent_synthetic_BK: Tensor,
    beta: float,
) -> Tensor:
    """beta*[log p(y) - log p_t(y)] - beta*[log p(y') - log p_t(y')], shape [B, K], in nats times beta."""
    real_B1 = (player_real_B - opponent_real_B).unsqueeze(-1)
    return beta * (real_B1 - (player_synthetic_BK - opponent_synthetic_BK))


def logistic(m: Tensor) -> Tensor:
    """log(1 + e^-m): the paper's default and DPO's loss; l(0) = log 2."""
    return F.softplus(-m)


def hinge(m: Tensor) -> Tensor:
    """max(0, 1 - m); l(0) = 1."""
    return F.relu(1 - m)


def exponential(m: Tensor) -> Tensor:
    """e^-m; l(0) = 1."""
    return torch.exp(-m)


def correlation(m: Tensor) -> Tensor:
    """1 - m: the integral probability metric of the paper's eq. 4.1; unbounded below; l(0) = 1."""
    return 1 - m


def squared(m: Tensor) -> Tensor:
    """(1 - m)^2: decreasing only for m < 1; l(0) = 1."""
    return (1 - m).square()


def ipo(m: Tensor) -> Tensor:
    """(m - 1/2)^2: IPO (Azar et al. 2023, arXiv 2310.12036) but for 1/beta^2, which `pairwise` adds; l(0) = 1/4.

    Its eq. 17 is (h - 1/(2 tau))^2 of the margin h without tau; with m = tau*h that is (m - 1/2)^2 / tau^2.
    """
    return (m - 0.5).square()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": logistic,
    "hinge": hinge,
    "exponential": exponential,
    "correlation": correlation,
    "squared": squared,
    "ipo": ipo,
}
UNSCALED = frozenset({"ipo"})  # losses of the margin without beta: l(m) / beta^2


def pairwise(m_BK: Tensor, loss: str, beta: float = 1.0, flipped: float = 0.0) -> Tensor:
    """Mean of l over a prompt's synthetic answers, shape [B].

    beta     what the margins were multiplied by; only losses in UNSCALED need it, and it must not be 0 for them
    flipped  share e of pairs that are thought to be the wrong way round: (1-e)*l(m) + e*l(-m), the label smoothing
             of cDPO (Mitchell 2023)
    """
    value_BK = LOSSES[loss](m_BK)
    if flipped:
        value_BK = (1 - flipped) * value_BK + flipped * LOSSES[loss](-m_BK)
    return value_BK.mean(dim=-1) / (beta**2 if loss in UNSCALED else 1.0)


def at_zero(loss: str, beta: float = 1.0) -> float:
    """l(0): the value with which every iteration must begin (law 1), whatever the label smoothing."""
    return float(pairwise(torch.zeros(1, dtype=torch.float64), loss, beta))


def accuracy(m_BK: Tensor, tie_BK: Tensor | float = 0.0) -> Tensor:
    """Share of synthetic answers that the margin puts below the real one; a tie counts 1/2; shape [B].

    tie_BK  how far from 0 a margin may be by rounding alone
    """
    return ((m_BK > tie_BK).double() + 0.5 * (m_BK.abs() <= tie_BK).double()).mean(dim=-1)
