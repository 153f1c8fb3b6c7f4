"""Laws 5, 7, 8 and 9 as numbers, measured on the low-rank bandit beside what theory says.

Every function returns a dict of plain numbers, which `sparring lab run` writes to lab.json and draws.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparring.laboratory.bandit import Bandit
from sparring.objectives.pairwise import LOSSES

Numbers = dict[str, Any]

BETAS = (0.4, 0.6, 0.8, 1.0, 2.0, 5.0)
STARTED = 1.0  # how far θ_0 of law 7 is from the data, in the norm of the log-ratio
ITERATIONS = 6
PLAYERS = 8  # at which law 5 is measured
DESCENT = (12, 10, 2.0)  # iterations, gradient steps each, step size
STARTS = 4  # of SPIN for each rank
MOST = 60  # iterations until SPIN stands still
STILL = 1e-9  # how little a log-prob moves then


def law_5(world: Bandit, seed: int = 0, beta: float = 0.5) -> Numbers:
    """At θ = θ_t the expected gradient is -l'(0)·beta·∇NLL; with the opponent's likeliest arm as y' it is not.

    Returns, per loss, the ratio that theory says, and for sampled and greedy y' the cosine and the ratio of the
    two gradients' lengths, both furthest from 1 and from theory over several players; and the course of KL by
    gradient descent on both.
    """
    rank = min(world.base_XY.shape) - 2
    players = [world.start(rank, seed + k, scale=0.6) for k in range(PLAYERS)]
    found: Numbers = {"beta": beta, "players": PLAYERS, "losses": {}}
    for loss in LOSSES:
        slope = float(torch.func.grad(LOSSES[loss])(torch.zeros((), dtype=torch.float64)))
        row: Numbers = {"theory": -slope * beta}
        for name, greedy in (("sampled", False), ("greedy", True)):
            pairs = [_gradients(world, point_N, beta, loss, greedy) for point_N in players]
            cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
            ratios = [float(a.norm() / b.norm()) for a, b in pairs]
            row[name] = {"cosine": min(cosines), "ratio": max(ratios, key=lambda ratio: abs(ratio - row["theory"]))}
        found["losses"][loss] = row
    found["descent"] = {
        name: _descent(world, world.start(rank, seed), greedy)
        for name, greedy in (("sampled", False), ("greedy", True))
    }
    return found


def _gradients(world: Bandit, point_N: Tensor, beta: float, loss: str, greedy: bool) -> tuple[Tensor, Tensor]:
    """(expected gradient of SPIN's loss at θ = θ_t, gradient of the NLL), each [N]."""
    opponent_XY = world.low_rank(point_N).detach()
    spin_N = world.gradient(
        lambda at_N: world.spin_loss(world.low_rank(at_N), opponent_XY, beta, loss, greedy), point_N
    )
    return spin_N, world.gradient(lambda at_N: world.nll(world.low_rank(at_N)), point_N)


def _descent(world: Bandit, point_N: Tensor, greedy: bool) -> list[float]:
    """KL(p_data ‖ θ_t) of players that take some plain gradient steps in each iteration."""
    iterations, steps, size = DESCENT
    course = [world.kl(world.low_rank(point_N))]
    for _ in range(iterations):
        opponent_XY = world.low_rank(point_N).detach()

        def value(at_N: Tensor, opponent_XY: Tensor = opponent_XY) -> Tensor:
            return world.spin_loss(world.low_rank(at_N), opponent_XY, 1.0, "logistic", greedy)

        for _ in range(steps):
            point_N = point_N - size * world.gradient(value, point_N)
        course.append(world.kl(world.low_rank(point_N)))
    return course


def law_7(world: Bandit) -> Numbers:
    """The log-ratio's error by iteration, per beta, beside |1 - 1/beta|^t; players may be any table."""
    away_XY = world.log_ratio(world.base_XY.log_softmax(-1))
    start_N = (world.data_XY + STARTED / away_XY.norm() * away_XY - world.base_XY).flatten()
    rows: Numbers = {}
    for beta in BETAS:
        point_N, errors = start_N, [_error(world, start_N)]
        for _ in range(ITERATIONS):
            point_N = world.best_response(point_N, beta)
            errors.append(_error(world, point_N))
        factor = abs(1 - 1 / beta)
        rows[f"{beta:g}"] = {
            "errors": errors,
            "factor": factor,
            "theory": [errors[0] * factor**t for t in range(len(errors))],
        }
    return {"betas": rows}


def _error(world: Bandit, point_N: Tensor) -> float:
    return float(world.log_ratio(world.unrestricted(point_N)).norm())


def law_8(world: Bandit) -> Numbers:
    """SPIN's least loss against three opponents, per beta, beside log 2 - JSD; players may be any table."""
    away_XY = world.log_ratio(world.base_XY.log_softmax(-1))
    rows: Numbers = {}
    for name, share in (("the base", 1.0), ("half way to the data", 0.5), ("the data", 0.0)):
        start_N = (world.data_XY + share * away_XY - world.base_XY).flatten()
        opponent_XY = world.unrestricted(start_N)
        least = {}
        for beta in BETAS:
            best_XY = world.unrestricted(world.best_response(start_N, beta))
            least[f"{beta:g}"] = float(world.spin_loss(best_XY, opponent_XY, beta))
        rows[name] = {
            "theory": math.log(2) - world.divergence(opponent_XY),
            "least": least,
            "kl": world.kl(opponent_XY),
        }
    return {"opponents": rows}


def law_9(world: Bandit, seed: int = 0, beta: float = 1.0) -> Numbers:
    """Where SPIN stands still under each rank, beside the stationary points of the likelihood.

    Returns, per rank, KL(p_data ‖ ·) at the likelihood's stationary points, best first, as found from several
    starts of their own; of SPIN's ends, with the iterations they took, the gradient of the NLL there, and the KL of
    the stationary point next to it; and the largest gradient of SPIN's expected loss at the best one, over all
    losses and betas.
    """
    ranks: Numbers = {}
    for rank in range(1, world_rank(world) + 1):
        points = world.stationary_points(rank)
        pull = [
            float(_gradients(world, points[0], beta, loss, greedy=False)[0].abs().max())
            for loss in LOSSES
            for beta in BETAS
        ]
        ends = [_stand_still(world, world.start(rank, seed + k), beta) for k in range(STARTS)]
        known = [world.kl(world.low_rank(point_N)) for point_N in points]
        ranks[str(rank)] = {"stationary": known, "pull": max(pull), "spin": ends}
    return {"beta": beta, "base": world.kl(world.base_XY.log_softmax(-1)), "ranks": ranks}


def world_rank(world: Bandit) -> int:
    """The rank of the data over the base, but for what is the same for all arms."""
    return int(torch.linalg.matrix_rank(world.log_ratio(world.base_XY.log_softmax(-1)), rtol=1e-8))


def _stand_still(world: Bandit, point_N: Tensor, beta: float) -> Numbers:
    """SPIN in low rank until the player moves no more."""
    iterations, moved = 0, math.inf
    while moved > STILL and iterations < MOST:
        next_N = world.best_response(point_N, beta, family=world.low_rank)
        moved = float((world.low_rank(next_N) - world.low_rank(point_N)).abs().max())
        point_N, iterations = next_N, iterations + 1
    slope_N = world.gradient(lambda at_N: world.nll(world.low_rank(at_N)), point_N)
    kl, near = (world.kl(world.low_rank(at_N)) for at_N in (point_N, world.most_likely(point_N)))
    return {"kl": kl, "iterations": iterations, "moved": moved, "gradient": float(slope_N.abs().max()), "near": near}


def measure_bandit(seed: int = 0, world: Bandit | None = None) -> Numbers:
    """All of world A.

    world  default: the one of this seed
    """
    world = world or Bandit.make(seed)
    contexts, arms = world.base_XY.shape
    return {
        "contexts": contexts,
        "arms": arms,
        "rank": world_rank(world),
        "law_5": law_5(world, seed),
        "law_7": law_7(world),
        "law_8": law_8(world),
        "law_9": law_9(world, seed),
    }
