"""On a CUDA device: packed rows with flash attention are exact, and a small run goes through in bf16."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sparring.methods import METHODS
from sparring.models.base import Base, wrap_base
from sparring.models.forward import Layout
from sparring.models.players import Player
from sparring.models.scoring import answer_logprobs, score
from sparring.selfplay import self_play
from tests.helpers import base_of, config_of, disturb, model_of, random_rows, renderer_of, ring_of
from tests.laws.lab import session

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

PACKED = ("llama", "qwen2", "qwen3", "mistral", "gemma3")


def on_gpu(name: str, dtype: torch.dtype) -> Base:
    """The tiny base of that architecture on the GPU; heads of 32, since flash attention takes no smaller."""
    cpu = base_of(name)
    wide = {"hidden_size": 128, "head_dim": 32} if name in ("qwen3", "gemma3") else {"hidden_size": 128}
    config = config_of(name, cpu.renderer.tokenizer)
    for key, value in wide.items():
        setattr(config, key, value)
    model = model_of(config, dtype=dtype, sharp=1.0).cuda()
    return wrap_base(model, renderer_of(cpu.renderer.tokenizer), name)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_rows_agree_with_padded_rows(name: str, dtype: torch.dtype) -> None:
    base = on_gpu(name, dtype)
    assert base.layout.packed, base.layout.why
    padded = dataclasses.replace(base, layout=Layout(direct=True))
    rows = [row for row in random_rows(base.vocabulary) for _ in range(2)]
    got, expected = (torch.tensor(score(base.model, each, rows, 8192)) for each in (base, padded))
    root = torch.tensor([len(answer) for _, answer in rows]).sqrt()
    assert ((got - expected).abs() / root).max() < (1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("flash", [False, True])
def test_gradients_agree_with_those_of_padded_rows(flash: bool) -> None:
    base = on_gpu("llama", torch.bfloat16)
    if flash and not base.layout.flash:
        pytest.skip("no flash attention for sequences of varying length here")
    ring = ring_of(base)
    ring.challenge(Player.untrained(base), 0)
    disturb(ring)
    rows = random_rows(base.vocabulary)
    found = []
    for layout in (dataclasses.replace(base.layout, flash=flash), Layout(direct=True)):
        answer_logprobs(ring.model, dataclasses.replace(base, layout=layout), rows).logprob_A.sum().backward()
        found.append(torch.cat([p.grad.float().flatten() for p in ring.trainable().values()]))
        ring.model.zero_grad()
    assert (found[0] - found[1]).norm() < 0.05 * found[1].norm()


def test_a_small_run(tmp_path: Path) -> None:
    with session(tmp_path, "model.device=cuda", "model.dtype=bf16", "selfplay.iterations=1") as opened:
        best = self_play(opened)
    assert (best.folder / "best.json").exists()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_small_run_on_a_quantised_base(tmp_path: Path, kind: str, dtype: str) -> None:
    pytest.importorskip("bitsandbytes")
    settings = ("model.device=cuda", f"model.dtype={dtype}", f"model.quantise={kind}", "selfplay.iterations=1")
    with session(tmp_path, *settings) as opened:
        best = self_play(opened)
        base = opened.ring.base
        rows = random_rows(base.vocabulary, count=8)
        opened.ring.seat(Player.untrained(base))
        evaluated = score(base.model, base, rows, 8192)
        assert score(base.model.train(), base, rows, 8192) == evaluated
    assert (best.folder / "best.json").exists()
    assert base.quantised == kind


@pytest.mark.parametrize("method", METHODS)
def test_a_small_run_of_every_method(tmp_path: Path, method: str) -> None:
    """In the method's own dtype: full fine-tuning in fp32, all others in bf16."""
    dtype = "fp32" if METHODS[method].whole else "bf16"
    settings = ("model.device=cuda", f"model.dtype={dtype}", f"method={method}", "selfplay.iterations=1")
    with session(tmp_path, *settings) as opened:
        best = self_play(opened)
        opened.ring.seat(Player.untrained(opened.ring.base))
    assert (best.folder / "best.json").exists()
