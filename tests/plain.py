"""What is right for pairs, by plain forward passes of whole sequences and by nothing of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F

from sparring.data.collate import Row
from sparring.models.base import Base, quiet_dropout, wrap_base
from sparring.models.players import Player, Ring
from tests.helpers import base_of, byte_tokenizer, config_of, disturb, model_of, renderer_of, ring_of

PACKED = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt_neox", "gpt2", "gemma2", "cohere", "granite")
WIDER = ("mistral_40", "gemma3_40")  # windows of 40 tokens, which is less than the longest prompts
SEPARATE = {"gpt_neo": "off", "gptj": "off", "mamba": "linear_attention", "recurrent_gemma": "linear_attention"}
BETA = 0.3


def base_named(name: str, **changes: Any) -> Base:
    """A tiny base; `NAME_40` has a window of 40."""
    plain, _, window = name.partition("_4")
    if window or changes:
        config = quiet_dropout(config_of(plain, byte_tokenizer()))
        for key, value in ({"sliding_window": 40} if window else changes).items():
            setattr(config, key, value)
        return wrap_base(model_of(config), renderer_of(byte_tokenizer()), name)
    return base_of(name)


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, 400, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def pairs_of(samples: int) -> list[Row]:
    """Pairs of 1 + K answers: prompts much longer than their answers and much shorter, answers of one token,
    a prompt twice in a row."""
    shapes: list[tuple[int, list[int]]] = [
        (60, [4, 9, 1, 2]),
        (60, [1, 25, 3, 1]),
        (3, [30, 17, 1, 20]),
        (1, [1, 1, 6, 1]),
        (18, [7, 7, 30, 5]),
        (45, [2, 40, 1, 3]),
        (84, [1, 2, 2, 3]),  # beside the 60 above, padding of its queries stands farther behind than a window
    ]
    rows: list[Row] = []
    for number, (prompt, answers) in enumerate(shapes):
        given = ids(prompt, 100 + number)
        rows += [(given, ids(size, 10 * number + k)) for k, size in enumerate(answers[: 1 + samples])]
        if number == 4:
            rows += [(given, ids(size + 2, 500 + k)) for k, size in enumerate(answers[: 1 + samples])]
    return rows


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """The model with transformers' own plain attention."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    before = inner.config._attn_implementation
    inner.set_attn_implementation("eager")
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def plain(model: Any, row: Row) -> Tensor:
    """log p of each answer token by one unpadded forward pass of the whole sequence, with a graph."""
    prompt, answer = row
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    return logprobs[torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1), torch.tensor(answer)]


def dpo(logprob_A: Tensor, samples: int) -> Tensor:
    """A DPO-like loss of pairs with K synthetic answers, whose opponent gave some fixed log-probs."""
    player_BR = logprob_A.double().view(-1, 1 + samples)
    opponent_BR = torch.linspace(-30, -5, player_BR.numel(), dtype=torch.float64).view_as(player_BR)
    shift_BR = player_BR - opponent_BR
    loss: Tensor = -F.logsigmoid(BETA * 0.1 * (shift_BR[:, :1] - shift_BR[:, 1:])).mean()
    return loss


def player_of(base: Base) -> Ring:
    """A trainable player far from its base, in training mode."""
    ring = ring_of(base)
    ring.challenge(Player.untrained(base), seed=0)
    disturb(ring)
    ring.model.train()
    return ring


def gradients(ring: Ring, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.double().clone() for name, p in ring.trainable().items() if p.grad is not None}
    ring.model.zero_grad()
    return found


def distance(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative difference of any tensor; tensors near zero count against the mean norm."""
    assert set(got) == set(expected)
    norms = torch.stack([value.norm() for value in expected.values()])
    floor = float(norms.square().mean().sqrt()) / 10
    return max(float((got[name] - value).norm() / max(float(value.norm()), floor)) for name, value in expected.items())
