"""World A: the low-rank bandit's algebra against loops written out, and its laws against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from sparring.laboratory.bandit import Bandit, minimise
from sparring.laboratory.bandit_laws import BETAS, law_5, law_7, law_8, law_9, world_rank
from sparring.objectives.pairwise import LOSSES


@pytest.fixture(scope="module")
def world() -> Bandit:
    return Bandit.make(3, contexts=4, arms=4, rank=2)


def test_a_world_is_its_seed_and_has_its_rank() -> None:
    assert torch.equal(Bandit.make(5).data_XY, Bandit.make(5).data_XY)
    assert not torch.equal(Bandit.make(5).data_XY, Bandit.make(6).data_XY)
    for rank in (1, 2, 3):
        assert world_rank(Bandit.make(0, 6, 5, rank)) == rank


def test_a_player_is_the_base_plus_a_table_of_its_rank(world: Bandit) -> None:
    player_XY = world.low_rank(world.start(1, seed=2))
    assert torch.allclose(player_XY.exp().sum(-1), torch.ones(4, dtype=torch.float64))
    added_XY = player_XY - world.base_XY
    assert torch.linalg.matrix_rank(added_XY - added_XY.mean(-1, keepdim=True), rtol=1e-10) == 1
    assert torch.allclose(world.low_rank(torch.zeros(8, dtype=torch.float64)), world.base_XY.log_softmax(-1))


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("greedy", [False, True])
def test_the_expected_loss_is_the_sum_over_pairs(world: Bandit, loss: str, greedy: bool) -> None:
    player, opponent, beta = world.low_rank(world.start(1, 0)), world.low_rank(world.start(2, 1)), 0.7
    total = 0.0
    for x in range(4):
        likeliest = int(opponent[x].argmax())
        for y in range(4):
            for other in range(4):
                m = beta * ((player[x, y] - opponent[x, y]) - (player[x, other] - opponent[x, other]))
                chance = float(other == likeliest) if greedy else opponent[x, other].exp().item()
                total += world.data_XY[x, y].exp().item() * chance * LOSSES[loss](m).item() / 4
    assert world.spin_loss(player, opponent, beta, loss, greedy).item() == pytest.approx(total, abs=1e-12)


def test_the_divergence_is_jensen_and_shannons(world: Bandit) -> None:
    opponent = world.low_rank(world.start(1, 4))
    total = 0.0
    for x in range(4):
        data, other = world.data_XY[x].exp(), opponent[x].exp()
        p, q = torch.outer(data, other), torch.outer(other, data)
        middle = (p + q) / 2
        total += 0.5 * float((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 4
    assert world.divergence(opponent) == pytest.approx(total, abs=1e-12)


def test_newton_goes_down_from_a_saddle_and_into_a_valley() -> None:
    start = torch.tensor([1e-3, 0.5], dtype=torch.float64)
    found = minimise(lambda p: (p[0] ** 2 - 1) ** 2 + p[1] ** 2, start)  # a saddle at the origin
    assert found.tolist() == pytest.approx([1.0, 0.0], abs=1e-8)
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    found = minimise(lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2, start)
    assert found.tolist() == pytest.approx([1.0, 1.0], abs=1e-8)


def test_law_5(world: Bandit) -> None:
    found = law_5(world, beta=0.5)
    for loss, slope in (("logistic", -0.5), ("hinge", -1), ("exponential", -1), ("correlation", -1), ("squared", -2)):
        row = found["losses"][loss]
        assert row["theory"] == pytest.approx(-slope * 0.5)
        assert row["sampled"]["cosine"] == pytest.approx(1, abs=1e-10)
        assert row["sampled"]["ratio"] == pytest.approx(row["theory"], abs=1e-10)
        assert row["greedy"]["cosine"] < 0.95
    course = found["descent"]
    assert course["sampled"][-1] < 0.1 * course["sampled"][0]
    assert course["greedy"][-1] > 10 * course["sampled"][-1]


@pytest.mark.parametrize("beta", [0.4, 0.8, 2.0])
def test_law_7_the_best_response_is_the_closed_form(world: Bandit, beta: float) -> None:
    start_N = torch.zeros(16, dtype=torch.float64)
    opponent = world.unrestricted(start_N)
    wanted = (opponent + (world.data_XY - opponent) / beta).log_softmax(-1)
    assert torch.allclose(world.unrestricted(world.best_response(start_N, beta)), wanted, atol=1e-7)


def test_law_7_the_rate(world: Bandit) -> None:
    for beta, row in law_7(world)["betas"].items():
        first, last = row["errors"][0], row["errors"][-1]
        assert row["factor"] == pytest.approx(abs(1 - 1 / float(beta)))
        for t, error in enumerate(row["errors"]):
            assert error == pytest.approx(first * row["factor"] ** t, rel=1e-4, abs=1e-6)
        assert (last > first) == (float(beta) < 0.5)


def test_law_8(world: Bandit) -> None:
    rows = law_8(world)["opponents"]
    for row in rows.values():
        assert len(row["least"]) == len(BETAS)
        assert list(row["least"].values()) == pytest.approx([row["theory"]] * len(BETAS), abs=1e-9)
    assert rows["the data"]["theory"] == pytest.approx(math.log(2))
    assert rows["the base"]["theory"] < rows["half way to the data"]["theory"] < math.log(2)


def test_law_9(world: Bandit) -> None:
    found = law_9(world)
    distances = [found["base"], *(row["stationary"][0] for row in found["ranks"].values())]
    assert len(distances) == 3
    assert distances[0] > distances[1] > 1e-4  # a rank too low cannot reach the data …
    assert distances[2] == pytest.approx(0, abs=1e-12)  # … and their own can
    for row in found["ranks"].values():
        assert row["pull"] < 1e-8
        for end in row["spin"]:
            assert end["gradient"] < 1e-8
            assert min(abs(end["kl"] - known) for known in row["stationary"]) < 1e-9


def test_law_9_holds_at_a_lesser_maximum_too() -> None:
    """This world's likelihood has two maxima of rank 1, and SPIN ends at both, by where it starts."""
    world = Bandit.make(4)
    points = world.stationary_points(1)
    known = [world.kl(world.low_rank(point_N)) for point_N in points]
    assert len(known) == 2
    assert known[1] > known[0] + 0.1
    for point_N, kl in zip(points, known, strict=True):
        slope_N = world.gradient(lambda at_N: world.nll(world.low_rank(at_N)), point_N)
        assert slope_N.abs().max() < 1e-8
        next_N = world.best_response(point_N, 1.0, family=world.low_rank)
        assert world.kl(world.low_rank(next_N)) == pytest.approx(kl, abs=1e-9)


def test_a_player_that_is_not_stationary_is_moved(world: Bandit) -> None:
    """What law 9 finds at the best likelihood, it does not find beside it."""
    beside_N = world.stationary_points(1)[0] + 0.05
    next_N = world.best_response(beside_N, 1.0, family=world.low_rank)
    assert (world.low_rank(next_N) - world.low_rank(beside_N)).abs().max() > 1e-3
