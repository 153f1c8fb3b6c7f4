"""Quantised bases: only weights change, numbers depend on nothing else, the base keeps its bytes; what is refused."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.helpers import byte_tokenizer, make_player, random_rows, ring_of, save_base

from sparring.config import Config, ModelConfig
from sparring.errors import ConfigError, ModelError
from sparring.models import quantised
from sparring.models.base import Base, fingerprint_base, load_base, load_renderer, read_config
from sparring.models.flops import Flops
from sparring.models.players import Player, fingerprint_tensors
from sparring.models.quantised import (
    count_parameters,
    folder_bytes,
    layers,
    plain_bytes,
    quantisation,
    weight_bytes,
)
from sparring.models.scoring import answer_logprobs, score
from sparring.saving import saving_lines

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="quantised bases need bitsandbytes, which is not here"
)
KINDS = ("nf4", "int8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place, tokenizer = tmp_path_factory.mktemp("bases"), byte_tokenizer()
    found = {name: save_base(place / name, name, tokenizer) for name in ("llama", "gpt_neo", "gpt2")}
    found["tied"] = save_base(place / "tied", "qwen2", tokenizer, tie_word_embeddings=True)
    return found


def settings(folder: Path, quantise: str = "none", dtype: str = "fp32", **more: Any) -> ModelConfig:
    given = {"base": str(folder), "device": "cpu", "dtype": dtype, "quantise": quantise, **more}
    return ModelConfig.model_validate(given)


def loaded(folder: Path, quantise: str = "none", dtype: str = "fp32", **more: Any) -> Base:
    config = settings(folder, quantise, dtype, **more)
    return load_base(folder, config, load_renderer(folder, config))


def printed(base: Base) -> str:
    """The bytes of all weights, packed ones with their scales."""
    return fingerprint_tensors(base.model.state_dict())


# ---------------------------------------------------------------- the weights


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt_neo", "gpt2", "tied"])
def test_all_but_the_head_is_quantised(folders, name, kind):
    plain, base = loaded(folders[name]), loaded(folders[name], kind)
    packed = list(layers(base.model))
    assert base.quantised == kind
    assert plain.quantised == ""
    assert len(packed) == {"llama": 14, "gpt_neo": 12, "gpt2": 8, "tied": 14}[name]
    head = base.model.get_output_embeddings()
    assert type(head) is torch.nn.Linear
    assert torch.equal(head.weight, plain.model.get_output_embeddings().weight)
    assert (head.weight is base.model.get_input_embeddings().weight) == (name != "llama")
    assert count_parameters(base.model) == count_parameters(plain.model)
    assert Flops.of(base.model) == Flops.of(plain.model)
    assert weight_bytes(base.model) < weight_bytes(plain.model) == plain_bytes(base.model, torch.float32)
    assert folder_bytes(folders[name], torch.float32) == weight_bytes(plain.model)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt_neo", "gpt2", "tied"])
def test_the_numbers_are_those_of_the_rounded_weights(folders, name, kind):
    """A plain model that is given the rounded weights says the same: nothing else is rounded, forwards or backwards."""
    base, plain = loaded(folders[name], kind), loaded(folders[name])
    rows = random_rows(base.vocabulary, count=6)
    assert base.layout.packed == plain.layout.packed
    before = score(plain.model, plain, rows, 8192)
    unpacked = dict(plain.model.named_modules())
    with torch.no_grad():
        for path, module in base.model.named_modules():
            if any(module is layer for layer in layers(base.model)):
                eye = torch.eye(module.in_features)
                weight = module(eye) - (0 if module.bias is None else module.bias)
                target = unpacked[path].weight
                target.copy_(weight if type(unpacked[path]).__name__ == "Conv1D" else weight.T)
    assert score(base.model, base, rows, 8192) == pytest.approx(score(plain.model, plain, rows, 8192), abs=2e-4)
    assert score(base.model, base, rows, 8192) != pytest.approx(before, abs=1e-3)
    slopes = []
    for one in (base, plain):
        hidden = one.model.get_input_embeddings()(torch.tensor([rows[0][0]])).detach().requires_grad_(True)
        one.model(inputs_embeds=hidden).logits.square().mean().backward()
        slopes.append(hidden.grad)
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-3, atol=1e-4 * slopes[1].abs().max().item())


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_the_same_log_prob_alone_among_others_and_in_training(folders, kind):
    base = loaded(folders["llama"], kind)
    rows = random_rows(base.vocabulary, count=30)
    together, alone = score(base.model, base, rows, 8192), score(base.model, base, rows, 1)
    assert together == pytest.approx(alone, abs=2e-4)
    base.model.train()
    assert score(base.model, base, rows, 8192) == together
    base.model.eval()


@needs_bitsandbytes
def test_bitsandbytes_own_eight_bits_would_not(folders):
    """Or the test above would show nothing: activations are rounded outside of training."""
    import logging

    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    base = loaded(folders["llama"], "int8")
    rows = random_rows(base.vocabulary, count=30)
    for layer in layers(base.model):
        del layer.forward
    evaluated = score(base.model, base, rows, 8192)
    trained = score(base.model.train(), base, rows, 8192)
    assert max(abs(a - b) for a, b in zip(evaluated, trained, strict=True)) > 1e-2


@needs_bitsandbytes
def test_four_bits_are_never_repacked(folders):
    base = loaded(folders["llama"], "nf4", dtype="fp16")
    assert all(layer.support_avx512bf16_for_cpu is False for layer in layers(base.model))
    assert all(layer.compute_dtype == torch.float16 for layer in layers(base.model))


# ---------------------------------------------------------------- players on it


@needs_bitsandbytes
@pytest.mark.parametrize("hold", ["continue", "stack"])
@pytest.mark.parametrize("kind", KINDS)
def test_players_take_turns_and_the_base_keeps_its_bytes(folders, kind, hold, tmp_path):
    base = loaded(folders["llama"], kind)
    before, rows = printed(base), random_rows(base.vocabulary, count=5)
    ring, players = ring_of(base), [Player.untrained(base, hold)]
    for number in range(2):
        players.append(make_player(ring, players[-1], tmp_path, f"{number}", seed=number + 1))
    for player in players:
        said = score(ring.seat(player), base, rows, 8192)
        assert score(ring.seat(player, merged=True), base, rows, 8192) == said
        assert score(ring.challenge(player, seed=3).train(), base, rows, 8192) == said
        gradients = answer_logprobs(ring.model, base, rows).logprob_A.sum()
        gradients.backward()
        trained = ring.trainable()
        assert len(trained) == 2 * 14
        assert all(p.grad is not None for p in trained.values())
        fresh = player is players[0] or hold == "stack"
        assert all(("lora_A" in name and fresh) or p.grad.abs().max() > 0 for name, p in trained.items())
    ring.seat(players[0])
    assert printed(base) == before


@needs_bitsandbytes
def test_a_player_belongs_to_the_base_as_it_was_quantised(folders, tmp_path):
    ring = ring_of(loaded(folders["llama"], "nf4"))
    player = make_player(ring, Player.untrained(ring.base), tmp_path, "one")
    other = ring_of(loaded(folders["llama"], "nf4", double_quant=False))
    with pytest.raises(ModelError, match="was trained on another base"):
        other.seat(player)


# ---------------------------------------------------------------- fingerprints


def test_fingerprints_tell_weights_apart(folders, tmp_path):
    folder = folders["llama"]  # stored in fp32
    forms: list[tuple[str, dict[str, Any]]] = [
        ("none", {}), ("nf4", {}), ("nf4", {"double_quant": False}), ("int8", {}),
        ("nf4", {"dtype": "bf16"}), ("nf4", {"dtype": "fp16"}), ("int8", {"dtype": "fp16"}),
    ]  # fmt: skip
    found = [fingerprint_base(folder, settings(folder, kind, **more)) for kind, more in forms]
    assert len(set(found)) == len(forms)
    for more in ({"dtype": "bf16"}, {"double_quant": False}):
        assert fingerprint_base(folder, settings(folder, "none", **more)) == found[0]
    assert fingerprint_base(folder, settings(folder, "int8", double_quant=False)) == found[3]


@needs_bitsandbytes
def test_a_dtype_that_loses_nothing_is_no_other_base(tmp_path):
    folder = save_base(tmp_path / "half", "llama", byte_tokenizer())
    half = loaded(folder, dtype="bf16").model
    half.config._attn_implementation = "sdpa"
    half.save_pretrained(folder)
    wide, narrow = (loaded(folder, "nf4", dtype) for dtype in ("fp32", "bf16"))
    assert wide.fingerprint == narrow.fingerprint != loaded(folder, "nf4", "fp16").fingerprint
    packed = [[layer.weight.data for layer in layers(base.model)] for base in (wide, narrow)]
    assert all(torch.equal(a, b) for a, b in zip(*packed, strict=True))


# ---------------------------------------------------------------- bases that come quantised


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_that_comes_quantised_is_loaded_as_it_is(folders, kind, tmp_path):
    made = loaded(folders["llama"], kind)
    for layer in layers(made.model):
        vars(layer).pop("forward", None)
    made.model.save_pretrained(tmp_path / "packed")
    made.renderer.tokenizer.save_pretrained(tmp_path / "packed")
    base = loaded(tmp_path / "packed")
    assert base.quantised == kind
    rows = random_rows(base.vocabulary, count=5)
    again = loaded(folders["llama"], kind)
    assert score(base.model, base, rows, 8192) == score(again.model, again, rows, 8192)
    with pytest.raises(ConfigError, match=f"model.quantise is nf4, but .* comes quantised \\({kind}\\)"):
        loaded(tmp_path / "packed", "nf4")


def test_another_kind_is_named(folders, tmp_path):
    folder = save_base(tmp_path / "gptq", "llama", byte_tokenizer())
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="quantised as gptq, cannot be loaded"):
        loaded(folder)


# ---------------------------------------------------------------- refusals, before anything is loaded


def test_missing_bitsandbytes_is_one_sentence(folders, monkeypatch):
    quantised._installed.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it raises ImportError
    config = settings(folders["llama"], "nf4")
    with pytest.raises(ModelError, match=r"needs bitsandbytes; install it: pip install 'sparring\[quant\]'"):
        quantisation(read_config(folders["llama"], config), config)
    quantised._installed.cache_clear()


@needs_bitsandbytes
def test_nothing_is_merged_into_a_quantised_base(folders):
    config = Config.model_validate({"model": {"quantise": "int8"}, "selfplay": {"hold": "merge"}})
    with pytest.raises(ConfigError, match=r"hold is merge, but the base is quantised \(int8\).* continue or stack"):
        quantised.check_quantised(read_config(folders["llama"], config.model), config)


@needs_bitsandbytes
def test_a_quantised_head_is_refused(folders):
    from bitsandbytes.nn import Linear4bit

    model = loaded(folders["llama"]).model
    model.lm_head = Linear4bit(32, model.lm_head.out_features)
    with pytest.raises(ModelError, match="the head of this base is quantised"):
        quantised.steady(model, torch.float32)


def test_bitsandbytes_is_not_imported_without_need(monkeypatch):
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    assert list(layers(torch.nn.Linear(2, 2))) == []
    assert "bitsandbytes" not in sys.modules


# ---------------------------------------------------------------- what check says


MIB = 2**20


def said(base: Any, estimate: dict[str, Any], **model: Any) -> str:
    return "\n".join(saving_lines(Config.model_validate({"model": {"device": "cpu", **model}}), base, estimate))


def test_check_says_what_is_saved():
    base = SimpleNamespace(quantised="nf4", device=torch.device("cpu"))
    much = {"plain_bytes": 1000 * MIB, "base_bytes": 300 * MIB, "memory_bytes": 700 * MIB}
    text = said(base, much, quantise="nf4")
    assert "NF4 (double) when it is loaded: weights 1,000 → 300 MiB, 50% of the estimated peak of 1,400 MiB" in text
    assert "next to nothing" not in text
    few = {"plain_bytes": 140 * MIB, "base_bytes": 50 * MIB, "memory_bytes": 100 * MIB}
    assert "saves next to nothing here, and costs speed and accuracy" in said(base, few, quantise="nf4")
    small = {"plain_bytes": 1000 * MIB, "base_bytes": 300 * MIB, "memory_bytes": 9000 * MIB}
    assert "saves next to nothing" in said(base, small, quantise="nf4")


def test_check_suggests_it_on_a_gpu_whose_memory_is_short(folders):
    model = loaded(folders["llama"]).model
    short = {"base_bytes": 10 * MIB, "memory_bytes": 30 * MIB, "free_bytes": 15 * MIB, "checkpointing": False}
    wide = {**short, "free_bytes": 25 * MIB}
    gpu = SimpleNamespace(quantised="", device=torch.device("cuda"), model=model, dtype=torch.bfloat16)
    cpu = SimpleNamespace(quantised="", device=torch.device("cpu"), model=model, dtype=torch.bfloat16)
    assert "memory is short" in said(gpu, short)
    assert "model.quantise=nf4 would free" in said(gpu, {**wide, "checkpointing": True})
    assert said(gpu, wide) == said(cpu, short) == ""


@pytest.mark.parametrize("method", ["full", "pissa", "ia3"])
def test_a_base_that_comes_quantised_is_not_for_every_method(method, monkeypatch):
    monkeypatch.setattr(quantised, "quantisation", lambda settings, config: "nf4")
    with pytest.raises(ConfigError, match=f"the base is quantised .nf4., which is not for method {method}"):
        quantised.check_quantised(None, Config.model_validate({"method": method}))
