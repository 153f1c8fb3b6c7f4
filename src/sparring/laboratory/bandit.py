"""World A: a low-rank bandit, so small that SPIN is exact matrix algebra.

A prompt is one of X contexts, an answer one of Y arms. The base is a table of logits, a player adds a table of
rank r to it, and the data are another such table of rank R:

    player  log p(y|x) = log softmax_y (base + U Vᵀ)        U [X, r], V [Y, r]
    data    log p_data(y|x) = log softmax_y (base + U* V*ᵀ)

Expectations over x (uniform), y ~ p_data and y' ~ p_t are sums over the table, with the loss functions that
training uses; minima are found by Newton's method in fp64. Nothing is sampled and nothing is approximate but the
last digits.

Shapes: X contexts, Y arms, r rank, N parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.objectives.pairwise import margin, pairwise

CONTEXTS, ARMS, RANK = 6, 5, 3  # of the default world
SMALLEST = 1e-13  # curvature, as a share of the largest, below which a direction counts as flat
SAME = 1e-6  # nats by which the KL of two stationary points must differ
HALVINGS = 40  # of a step that does not lower the value


@dataclass(frozen=True, slots=True)
class Bandit:
    """A world: the base's logits and the data's log-probs, both [X, Y] in fp64."""

    base_XY: Tensor
    data_XY: Tensor

    @staticmethod
    def make(seed: int = 0, contexts: int = CONTEXTS, arms: int = ARMS, rank: int = RANK) -> Bandit:
        """A random world whose data have rank `rank` over the base; the same seed gives the same world."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        base_XY = normal(contexts, arms)
        shrinking_R = 0.5 ** torch.arange(rank, dtype=torch.float64)  # so that every rank more helps, and less
        added_XY = (normal(contexts, rank) * shrinking_R) @ normal(rank, arms)
        return Bandit(base_XY, (base_XY + added_XY).log_softmax(-1))

    def start(self, rank: int, seed: int = 0, scale: float = 0.3) -> Tensor:
        """Parameters [N] of a player of some rank, away from the base."""
        generator = torch.Generator().manual_seed(seed)
        count = rank * sum(self.base_XY.shape)
        return scale * torch.randn(count, generator=generator, dtype=torch.float64)

    def low_rank(self, parameters_N: Tensor) -> Tensor:
        """log p [X, Y] of a player: the base plus U Vᵀ."""
        contexts, arms = self.base_XY.shape
        rank = len(parameters_N) // (contexts + arms)
        u_Xr = parameters_N[: contexts * rank].view(contexts, rank)
        v_Yr = parameters_N[contexts * rank :].view(arms, rank)
        return (self.base_XY + u_Xr @ v_Yr.T).log_softmax(-1)

    def unrestricted(self, parameters_N: Tensor) -> Tensor:
        """log p [X, Y] of a player that may be any table."""
        return (self.base_XY + parameters_N.view_as(self.base_XY)).log_softmax(-1)

    def nll(self, player_XY: Tensor) -> Tensor:
        """E -log p(y|x) over the data, in nats."""
        return -(self.data_XY.exp() * player_XY).sum(-1).mean()

    def kl(self, player_XY: Tensor) -> float:
        """KL(p_data ‖ p) in nats, mean over contexts."""
        return float((self.data_XY.exp() * (self.data_XY - player_XY)).sum(-1).mean())

    def log_ratio(self, player_XY: Tensor) -> Tensor:
        """log p - log p_data, centred in every context, [X, Y]."""
        ratio_XY = player_XY - self.data_XY
        return ratio_XY - ratio_XY.mean(-1, keepdim=True)

    def divergence(self, opponent_XY: Tensor) -> float:
        """JSD(p_data ⊗ p_t ‖ p_t ⊗ p_data) in nats, mean over contexts: law 8."""
        p_XYY = self.data_XY.unsqueeze(-1) + opponent_XY.unsqueeze(-2)
        q_XYY = p_XYY.transpose(-1, -2)
        middle_XYY = torch.logaddexp(p_XYY, q_XYY) - torch.log(torch.tensor(2.0, dtype=torch.float64))
        return float((p_XYY.exp() * (p_XYY - middle_XYY)).sum((-1, -2)).mean())  # both halves are equal

    def spin_loss(
        self, player_XY: Tensor, opponent_XY: Tensor, beta: float, loss: str = "logistic", greedy: bool = False
    ) -> Tensor:
        """E l(margin) over contexts, y ~ p_data and y' ~ p_t.

        greedy  y' is the opponent's likeliest arm instead of a sample: a fault
        """
        arms = player_XY.shape[1]
        asked_XYY = opponent_XY.unsqueeze(-2).expand(-1, arms, -1)  # [x, y, y']: log p_t(y'|x)
        given_XYY = player_XY.unsqueeze(-2).expand(-1, arms, -1)
        m_PK = margin(
            player_XY.reshape(-1), given_XYY.reshape(-1, arms), opponent_XY.reshape(-1), asked_XYY.reshape(-1, arms),
            beta,
        )  # fmt: skip
        value_XYY = pairwise(m_PK.reshape(-1, 1), loss).view_as(asked_XYY)
        played_XY = opponent_XY.exp()
        if greedy:
            played_XY = torch.nn.functional.one_hot(opponent_XY.argmax(-1), arms).double()
        return (self.data_XY.exp().unsqueeze(-1) * played_XY.unsqueeze(-2) * value_XYY).sum((-1, -2)).mean()

    def best_response(
        self, start_N: Tensor, beta: float, loss: str = "logistic", family: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """θ_t+1: where SPIN's loss against the player θ_t = `start_N` is least, parameters [N].

        family  from parameters to log p: `low_rank` or `unrestricted`, which is the default
        """
        family = family or self.unrestricted
        opponent_XY = family(start_N).detach()
        return minimise(lambda point_N: self.spin_loss(family(point_N), opponent_XY, beta, loss), start_N)

    def most_likely(self, start_N: Tensor) -> Tensor:
        """A stationary point of the likelihood in the family of low rank, from `start_N`; parameters [N]."""
        return minimise(lambda point_N: self.nll(self.low_rank(point_N)), start_N)

    def stationary_points(self, rank: int, starts: int = 12) -> list[Tensor]:
        """The likelihood's stationary points of some rank that several starts lead to, the best first; each [N].

        Under a rank limit there may be several. Points of the same KL count as one.
        """
        found = [self.most_likely(self.start(rank, 1000 + seed)) for seed in range(starts)]
        points: list[Tensor] = []
        for point_N in sorted(found, key=lambda point_N: self.kl(self.low_rank(point_N))):
            if not points or self.kl(self.low_rank(point_N)) > self.kl(self.low_rank(points[-1])) + SAME:
                points.append(point_N)
        return points

    def gradient(self, value: Callable[[Tensor], Tensor], point_N: Tensor) -> Tensor:
        """∇ of a function of parameters, [N]."""
        found: Tensor = torch.func.grad(value)(point_N)
        return found


def minimise(value: Callable[[Tensor], Tensor], start_N: Tensor, steps: int = 200, tolerance: float = 1e-11) -> Tensor:
    """A minimum of a smooth function near a start, parameters [N], by Newton's method in fp64.

    Directions of negative curvature are taken downhill and flat ones (U Vᵀ has many) left alone; a step is halved
    until the value falls. Ends when the largest entry of the gradient is below `tolerance`, when no step lowers the
    value, or after `steps`.
    """
    point_N = start_N.detach().clone()
    slope, curvature = torch.func.grad(value), torch.func.hessian(value)
    for _ in range(steps):
        gradient_N = slope(point_N)
        if gradient_N.abs().max() < tolerance:
            break
        bend_N, axes_NN = torch.linalg.eigh(curvature(point_N))
        steep_N = bend_N.abs().clamp(min=SMALLEST * float(bend_N.abs().max()))
        step_N = -(axes_NN @ ((axes_NN.T @ gradient_N) / steep_N))
        lower = _descend(value, point_N, step_N, float(gradient_N @ step_N))
        if lower is None:
            break
        point_N = lower
    return point_N


def _descend(value: Callable[[Tensor], Tensor], point_N: Tensor, step_N: Tensor, slope: float) -> Tensor | None:
    """The first point on the halved step that is low enough (Armijo); None: rounding allows no more."""
    begun = float(value(point_N))
    for halving in range(HALVINGS):
        share = 0.5**halving
        tried_N = point_N + share * step_N
        if float(value(tried_N)) <= begun + 1e-4 * share * slope:
            return tried_N
    return None
