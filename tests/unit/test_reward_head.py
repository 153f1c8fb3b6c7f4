"""The reward of an answer: the last hidden state of its last token, whatever the layout, the model, the method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.helpers import ARCHITECTURES, base_of, disturb, random_rows, ring_of

from sparring.errors import ModelError
from sparring.methods import METHODS
from sparring.models.forward import Layout
from sparring.models.players import Player, Ring
from sparring.models.reward_head import NAME, RewardHead, fresh, load_head, put_on, reward, rewards, save_head, take_off
from sparring.models.scoring import last_states

OTHERS = ("gemma2", "mamba", "recurrent_gemma")


def grouped_rows(vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Two answers to each prompt, as pairs have."""
    first, second = random_rows(vocabulary, 1, 5), random_rows(vocabulary, 2, 5)
    return [(prompt, ids) for (prompt, a), (_, b) in zip(first, second, strict=True) for ids in (a, b)]


@torch.no_grad()
def plain_state(model, row) -> torch.Tensor:
    """By one forward pass of the whole sequence, as transformers makes it."""
    ids = torch.tensor([row[0] + row[1]])
    return model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]


@pytest.mark.parametrize("name", [*ARCHITECTURES, *OTHERS])
def test_the_state_is_that_of_the_answers_last_token(name):
    base = base_of(name)
    rows = grouped_rows(base.vocabulary)
    with torch.no_grad():
        found_AD = last_states(base.model, base, rows)
    wanted_AD = torch.stack([plain_state(base.model, row) for row in rows])
    assert torch.allclose(found_AD, wanted_AD, atol=2e-4 * float(wanted_AD.abs().max()))


def test_every_layout_gives_the_same():
    base = base_of("llama")
    rows = grouped_rows(base.vocabulary)
    assert base.layout.packed
    found = []
    for layout in (base.layout, Layout(direct=True), Layout()):
        with torch.no_grad():
            found.append(last_states(base.model, replace(base, layout=layout), rows))
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert torch.allclose(found[1], found[2], atol=1e-4)


def test_the_order_of_rows_and_the_budget_change_nothing():
    base = base_of("qwen2")
    head = RewardHead(torch.randn(32, generator=torch.Generator().manual_seed(0)))
    rows = grouped_rows(base.vocabulary)
    whole = reward(base.model, base, head, rows, 8192)
    assert reward(base.model, base, head, rows, 30) == pytest.approx(whole, abs=1e-4)
    assert reward(base.model, base, head, rows[::-1], 8192)[::-1] == pytest.approx(whole, abs=1e-4)


def test_the_last_token_counts():
    base = base_of("llama")
    head = RewardHead(torch.ones(32))
    prompt, answer = random_rows(base.vocabulary, 3, 1)[0]
    last = (answer[-1] + 1) % base.vocabulary
    one, other = reward(base.model, base, head, [(prompt, answer), (prompt, [*answer[:-1], last])], 8192)
    assert one != pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_any_method_trains_with_the_head(method):
    base = base_of("llama")
    ring = Ring(base, METHODS[method].settings.model_validate({"name": method}), "base")
    ring.challenge(Player.untrained(base), 0)
    before = set(ring.trainable())
    head = fresh(base)
    put_on(base, head)
    added = set(ring.trainable()) - before
    assert len(added) == 1
    assert NAME in added.pop()
    rows = grouped_rows(base.vocabulary)
    for step in range(3):  # the head moves first, then what feeds it
        found_AB = rewards(ring.model, base, head, rows).view(-1, 2)
        if step == 0:
            assert not found_AB.any()
        loss = torch.nn.functional.softplus(found_AB[:, 1] - found_AB[:, 0]).sum()
        for parameter in ring.trainable().values():
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            for parameter in ring.trainable().values():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
    moved = [key for key, p in ring.trainable().items() if p.grad is not None and p.grad.any() and NAME not in key]
    assert moved
    take_off(base)
    assert set(ring.trainable()) == before


def test_only_the_head_learns_at_the_first_step():
    ring = ring_of(base_of("llama"))
    ring.challenge(Player.untrained(ring.base), 0)
    disturb(ring)
    head = fresh(ring.base)
    put_on(ring.base, head)
    rewards(ring.model, ring.base, head, grouped_rows(ring.base.vocabulary))[::2].sum().backward()
    assert head.weight.grad.any()
    assert not any(p.grad is not None and p.grad.any() for key, p in ring.trainable().items() if NAME not in key)


def test_a_saved_head_is_that_head(tmp_path):
    base = base_of("llama")
    head = RewardHead(torch.randn(32, generator=torch.Generator().manual_seed(0)))
    fingerprint = save_head(tmp_path, head)
    assert torch.equal(load_head(tmp_path, base, fingerprint).weight, head.weight)
    save_head(tmp_path, RewardHead(torch.ones(32)))
    with pytest.raises(ModelError, match="has been changed since it was made"):
        load_head(tmp_path, base, fingerprint)
    other = save_head(tmp_path, RewardHead(torch.ones(7)))
    with pytest.raises(ModelError, match="takes 7 numbers, and this one gives 32"):
        load_head(tmp_path, base, other)
