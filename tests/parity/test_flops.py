"""Our count of floating-point operations against torch's own, on the real code path: within 2 %."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import get_peft_model
from tests.plain import base_named, ids, player_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparring.config import GenerationConfig
from sparring.generation.local import LocalGenerator
from sparring.generation.sampling import stream_keys
from sparring.methods import METHODS
from sparring.models.flops import Flops
from sparring.models.players import Player, Ring
from sparring.models.scoring import answer_logprobs, computed_tokens
from sparring.models.virtual import VirtualConfig

SHARED = [(ids(40, 1), ids(24, 2)), (ids(40, 1), ids(24, 3)), (ids(40, 5), ids(24, 6)), (ids(40, 5), ids(24, 7))]
SEPARATE = [(ids(40, k), ids(24, 9 + k)) for k in range(4)]
NAMES = ("llama", "qwen2", "gpt2", "gpt_neo", "gpt_neox", "qwen3")


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """torch's counter knows attention on a CPU only as plain matrix products."""
    with sdpa_kernel([SDPBackend.MATH]), FlopCounterMode(display=False) as counter:
        yield counter


@pytest.mark.parametrize("rows", [SHARED, SEPARATE], ids=["shared", "separate"])
@pytest.mark.parametrize("name", NAMES)
def test_scoring_and_training(name: str, rows: list[tuple[list[int], list[int]]]) -> None:
    base = base_named(name)
    model = player_of(base).model
    lengths, scored = [len(prompt) + len(answer) - 1 for prompt, answer in rows], sum(len(a) for _, a in rows)
    flops, tokens = Flops.of(model), computed_tokens(base, rows)
    with torch.no_grad(), counted() as counter:
        answer_logprobs(model, base, rows)
    assert flops.forward(lengths, scored, tokens) == pytest.approx(counter.get_total_flops(), rel=0.02)
    with counted() as counter:
        (-answer_logprobs(model, base, rows).logprob_A.sum()).backward()
    assert flops.training(lengths, scored, tokens) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_training_with_layers_computed_again(name: str) -> None:
    base = base_named(name)
    model = player_of(base).model.train()
    base.model.gradient_checkpointing_enable({"use_reentrant": False})
    lengths, scored = [63] * 4, 96
    with counted() as counter:
        (-answer_logprobs(model, base, SEPARATE).logprob_A.sum()).backward()
    found = Flops.of(model).training(lengths, scored, checkpointing=True)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_decoding(name: str) -> None:
    base = base_named(name)
    model = player_of(base).model
    generator = LocalGenerator(model, base, GenerationConfig())
    prompts = [ids(40, k) for k in range(4)]
    with counted() as counter:
        answers = generator(prompts, stream_keys(0, 0, [1, 2, 3, 4], [0] * 4), 24)
    said = [len(answer.ids) for answer in answers]
    assert Flops.of(model).decoding([40] * 4, said) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("rows", [SHARED, SEPARATE], ids=["shared", "separate"])
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo", "qwen3"])
def test_virtual_tokens(name: str, kind: str, rows: list[tuple[list[int], list[int]]]) -> None:
    """They are in no row's length, but they are computed."""
    base = base_named(name)
    config = VirtualConfig(task_type="CAUSAL_LM", kind=kind, num_virtual_tokens=5)
    model = get_peft_model(base.model, config)
    lengths, scored = [len(prompt) + len(answer) - 1 for prompt, answer in rows], sum(len(a) for _, a in rows)
    flops, tokens = Flops.of(model), computed_tokens(base, rows)
    assert flops.virtual == Flops.of(base.model).virtual == 5
    with torch.no_grad(), counted() as counter:
        answer_logprobs(model, base, rows)
    assert flops.forward(lengths, scored, tokens) == pytest.approx(counter.get_total_flops(), rel=0.02)
    with counted() as counter:
        (-answer_logprobs(model, base, rows).logprob_A.sum()).backward()
    assert flops.training(lengths, scored, tokens) == pytest.approx(counter.get_total_flops(), rel=0.02)
    generator = LocalGenerator(model.eval(), base, GenerationConfig())
    with counted() as counter:
        answers = generator([ids(40, k) for k in range(4)], stream_keys(0, 0, [1, 2, 3, 4], [0] * 4), 24)
    said = [len(answer.ids) for answer in answers]
    assert flops.decoding([40] * 4, said) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt_neo"])
def test_every_method(name: str, method: str) -> None:
    base = base_named(name)
    """In two layers the first is half of the model, and a pass of 126 tokens is small beside DoRA's norms."""
    length = {"length": 3} if method in ("prompt", "prefix") else {}
    ring = Ring(base, METHODS[method].settings(**length), "base")
    model = ring.challenge(Player.untrained(base), seed=0).train()
    above, below = {"houlsby": (0.3, 0), "pfeiffer": (0.4, 0), "ia3": (0.06, 0), "dora": (0, 0.15)}.get(method, (0, 0))
    lengths, scored = [len(prompt) + len(answer) - 1 for prompt, answer in SHARED], sum(len(a) for _, a in SHARED)
    flops, tokens = Flops.of(model), computed_tokens(base, SHARED)
    with torch.no_grad(), counted() as counter:
        answer_logprobs(model, base, SHARED)
    passed = counter.get_total_flops()
    assert (0.98 - below) * passed <= flops.forward(lengths, scored, tokens) <= 1.02 * passed
    with counted() as counter:
        (-answer_logprobs(model, base, SHARED).logprob_A.sum()).backward()
    trained = counter.get_total_flops()
    assert (0.98 - below) * trained <= flops.training(lengths, scored, tokens) <= (1.02 + above) * trained
