"""Laws 4, 7, 8 and 9: what the objectives mean, on tables of probabilities, with the real loss functions.

Expectations over (y, y') are exact sums, and minima are found with L-BFGS in double precision.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparring.objectives.pairwise import LOSSES, at_zero, logistic, margin, pairwise

DATA = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
OPPONENT = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def expected_loss(logits: Tensor, opponent: Tensor, beta: float, loss: str) -> Tensor:
    """E over y ~ p_data, y' ~ p_t of l(margin), all pairs at once."""
    player = logits.log_softmax(-1)
    reference = opponent.log()
    n = len(DATA)
    m = margin(player, player.expand(n, n), reference, reference.expand(n, n), beta)
    value = torch.stack([pairwise(m[:, k : k + 1], loss) for k in range(n)], dim=-1)
    return (DATA.unsqueeze(-1) * opponent * value).sum()


def best_response(opponent: Tensor, beta: float, loss: str = "logistic") -> Tensor:
    """The minimiser over all distributions."""
    logits = opponent.log().clone().requires_grad_(True)
    solver = torch.optim.LBFGS([logits], max_iter=2000, tolerance_grad=1e-14, tolerance_change=1e-16,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        solver.zero_grad()
        value = expected_loss(logits, opponent, beta, loss)
        value.backward()
        return value

    solver.step(closure)
    return logits.detach().softmax(-1)


def test_law_4_logistic_swap() -> None:
    m = torch.linspace(-15, 15, 121, dtype=torch.float64)
    assert torch.allclose(logistic(-m), logistic(m) + m, atol=1e-12)


@pytest.mark.parametrize("beta", [0.6, 1.0, 2.0, 5.0])
def test_law_7_the_best_response(beta: float) -> None:
    wanted = OPPONENT * (DATA / OPPONENT) ** (1 / beta)
    wanted = wanted / wanted.sum()
    assert torch.allclose(best_response(OPPONENT, beta), wanted, atol=1e-6)


@pytest.mark.parametrize(("beta", "factor"), [(1.0, 0.0), (2.0, 0.5), (0.8, -0.25), (0.4, -1.5)])
def test_law_7_the_rate(beta: float, factor: float) -> None:
    """The centred log-ratio to the data is multiplied by 1 - 1/beta: beta < 1/2 diverges."""

    def error(p: Tensor) -> Tensor:
        ratio = p.log() - DATA.log()
        return ratio - ratio.mean()

    after = error(best_response(OPPONENT, beta))
    assert torch.allclose(after, factor * error(OPPONENT), atol=1e-5)
    assert (after.norm() > error(OPPONENT).norm()) == (beta < 0.5)


@pytest.mark.parametrize("beta", [0.7, 1.0, 3.0])
def test_law_8_the_least_loss(beta: float) -> None:
    p = (DATA.unsqueeze(-1) * OPPONENT).flatten()
    q = (OPPONENT.unsqueeze(-1) * DATA).flatten()
    middle = (p + q) / 2
    divergence = 0.5 * (p * (p / middle).log()).sum() + 0.5 * (q * (q / middle).log()).sum()
    found = expected_loss(best_response(OPPONENT, beta).log(), OPPONENT, beta, "logistic")
    assert found.item() == pytest.approx(math.log(2) - divergence.item(), abs=1e-9)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_law_9_the_data_distribution_is_a_fixed_point(loss: str, beta: float) -> None:
    logits = DATA.log().clone().requires_grad_(True)
    value = expected_loss(logits, DATA, beta, loss)
    value.backward()
    assert value.item() == pytest.approx(at_zero(loss))
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-12


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_law_9_gradient_is_the_likelihoods(loss: str, beta: float) -> None:
    """At θ = θ_t the expected gradient is l'(0)·beta·∇E log p(y): zero where the likelihood is stationary."""
    logits = OPPONENT.log().clone().requires_grad_(True)
    expected_loss(logits, OPPONENT, beta, loss).backward()
    slope = torch.func.grad(LOSSES[loss])(torch.zeros((), dtype=torch.float64))
    likelihood = DATA - OPPONENT  # ∇ of E log softmax(logits)[y]
    assert logits.grad is not None
    assert torch.allclose(logits.grad, slope * beta * likelihood, atol=1e-12)
    assert slope < 0  # every loss falls at 0
