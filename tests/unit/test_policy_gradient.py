"""Advantages, the clipped loss, KL and reductions: closed forms, and what holds for any rewards."""

from __future__ import annotations

import math

import pytest
import torch

from sparring.objectives.policy_gradient import REDUCTIONS, advantages, clipped, is_clipped, k3

F = torch.float64


@pytest.mark.parametrize("how", [("grpo", "group"), ("grpo", "batch"), ("grpo", "none"), ("rloo", "none")])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_advantages_add_up_to_nothing_and_keep_the_order(how: tuple[str, str], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = scale * torch.randint(-2, 3, (60, 4), generator=generator).to(F)
    rewards[0] = 1.1 * scale
    found = advantages(rewards, *how)
    assert found.sum(dim=-1).abs().max() <= 1e-9 * (1 + found.abs().max())
    for row, values in zip(rewards, found, strict=True):
        assert (values == 0).all() == (row.max() == row.min()), "a group of equal rewards teaches exactly nothing"
        assert torch.equal(values.argsort(stable=True), row.argsort(stable=True)) or row.max() == row.min()


def test_rounding_makes_no_advantage_of_equal_rewards() -> None:
    rewards = torch.full((1, 7), 1.1, dtype=F)
    assert (rewards - rewards.mean()).abs().max() > 0, "or this test shows nothing"
    assert advantages(rewards, "grpo").tolist() == [[0.0] * 7]
    assert advantages(rewards, "reinforce").tolist() == rewards.tolist()


def test_advantages_in_closed_form() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0]], dtype=F)
    deviation = 0.5  # unbiased: sqrt((9/16 + 3/16) / 3)
    assert advantages(rewards, "grpo")[0, 0].item() == pytest.approx(0.75 / (deviation + 1e-4))
    assert advantages(rewards, "grpo", "none").tolist() == [[0.75, -0.25, -0.25, -0.25]]
    assert advantages(rewards, "rloo").tolist() == [pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])]
    two = torch.tensor([[1.0, 0], [5, 5]], dtype=F)
    half = 0.5 / (two.std().item() + 1e-4)
    assert advantages(two, "grpo", "batch").tolist() == [
        pytest.approx([half, -half]),
        [0, 0],
    ]


def test_the_loss_at_ratio_one_is_minus_the_advantage_with_its_gradient() -> None:
    logprob = torch.tensor([-1.0, -2.0, -0.5], dtype=F, requires_grad=True)
    advantage = torch.tensor([1.5, -2.0, 0.0], dtype=F)
    loss = clipped(logprob, logprob.detach(), advantage, 0.2)
    assert loss.tolist() == [-1.5, 2.0, 0.0]
    loss.sum().backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == [-1.5, 2.0, 0.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "idle"),
    [
        (1.5, 1.0, -1.2, True),  # already likelier by more than epsilon: no further
        (0.5, 1.0, -0.5, False),  # a good answer became less likely: pulled back
        (0.5, -1.0, 0.8, True),
        (1.5, -1.0, 1.5, False),
        (1.1, 1.0, -1.1, False),
    ],
)
def test_clipping_stops_only_what_has_gone_far_enough(ratio: float, advantage: float, value: float, idle: bool) -> None:
    logprob = torch.tensor([math.log(ratio)], dtype=F, requires_grad=True)
    given_ = (torch.zeros(1, dtype=F), torch.tensor([advantage], dtype=F), 0.2)
    loss = clipped(logprob, *given_)
    assert loss.item() == pytest.approx(value)
    assert is_clipped(logprob, *given_).tolist() == [idle]
    loss.sum().backward()
    assert logprob.grad is not None
    assert (logprob.grad.item() == 0) is idle


def test_the_upper_bound_may_be_another() -> None:
    logprob = torch.tensor([math.log(1.3)], dtype=F)
    nothing, one = torch.zeros(1, dtype=F), torch.ones(1, dtype=F)
    assert clipped(logprob, nothing, one, 0.2, 0.28).item() == pytest.approx(-1.28)
    assert clipped(logprob, nothing, one, 0.2).item() == pytest.approx(-1.2)


def test_k3_is_an_unbiased_estimate_of_kl_and_never_negative() -> None:
    p, q = (torch.softmax(torch.randn(50, generator=torch.Generator().manual_seed(n), dtype=F), 0) for n in (0, 1))
    each = k3(p.log(), q.log())
    assert (each >= 0).all()
    assert (p * each).sum().item() == pytest.approx((p * (p / q).log()).sum().item())


def test_with_its_ratio_the_gradient_of_k3_is_that_of_kl() -> None:
    """Without it, samples of p give the gradient of KL the other way round."""
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=F, requires_grad=True)
    start = torch.log_softmax(torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=F), 0)
    logp = torch.log_softmax(logits, 0)
    sampled = logp.detach()
    exact = torch.autograd.grad((logp.exp() * (logp - start)).sum(), logits, retain_graph=True)[0]
    weighted = (sampled.exp() * (logp - sampled).exp() * k3(logp, start)).sum()
    plain = (sampled.exp() * k3(logp, start)).sum()
    assert torch.allclose(torch.autograd.grad(weighted, logits, retain_graph=True)[0], exact)
    assert not torch.allclose(torch.autograd.grad(plain, logits)[0], exact, atol=1e-3)


def test_reductions_of_a_step() -> None:
    loss = [[1.0, 2.0, 3.0], [10.0]]
    tokens = torch.tensor([3.0, 1.0], dtype=F)
    wanted = {"dapo": 16 / 4, "bnpo": 16 / 4, "grpo": (2 + 10) / 2, "dr_grpo": 16 / (2 * 8)}
    for name, reduction in REDUCTIONS.items():
        weight, part = reduction(tokens, 8)
        whole = sum(float(w) * sum(row) for w, row in zip(weight, loss, strict=True))
        assert whole / float(part.sum()) == pytest.approx(wanted[name]), name
