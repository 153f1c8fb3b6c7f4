"""The loss of a reward model at points where its value is known."""

from __future__ import annotations

import math

import pytest
import torch

from sparring.objectives.reward import bradley_terry, centring, right


def test_no_idea_costs_log_2():
    zero = torch.zeros(3)
    assert bradley_terry(zero, zero).tolist() == pytest.approx([math.log(2)] * 3)
    assert bradley_terry(zero, zero, smoothing=0.3).tolist() == pytest.approx([math.log(2)] * 3)
    assert bradley_terry(zero + 1, zero, margin=1.0).tolist() == pytest.approx([math.log(2)] * 3)


def test_values():
    chosen, rejected = torch.tensor([2.0]), torch.tensor([0.5])
    log_sigmoid = -math.log1p(math.exp(-1.5))
    assert bradley_terry(chosen, rejected).item() == pytest.approx(-log_sigmoid)
    smooth = -0.9 * log_sigmoid + 0.1 * math.log1p(math.exp(1.5))
    assert bradley_terry(chosen, rejected, smoothing=0.1).item() == pytest.approx(smooth)
    assert bradley_terry(chosen, rejected, margin=0.5).item() == pytest.approx(math.log1p(math.exp(-1.0)))
    assert centring(chosen, rejected).item() == pytest.approx(6.25)


def test_smoothing_has_its_minimum_where_the_share_of_flips_puts_it():
    optimal = math.log(0.9 / 0.1)
    at = torch.tensor([optimal], requires_grad=True)
    bradley_terry(at, torch.zeros(1), smoothing=0.1).sum().backward()
    assert at.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_a_level_changes_only_centring():
    torch.manual_seed(0)
    chosen, rejected = torch.randn(5), torch.randn(5)
    assert torch.allclose(bradley_terry(chosen + 3, rejected + 3), bradley_terry(chosen, rejected), atol=1e-6)
    assert not torch.allclose(centring(chosen + 3, rejected + 3), centring(chosen, rejected))


def test_ties_count_half():
    assert right(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0])).tolist() == [1.0, 0.0, 0.5]
