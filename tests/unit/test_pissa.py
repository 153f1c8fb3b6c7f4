"""PiSSA beside an unchanged base, against PEFT's own, which changes it; LoRA+'s groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tests.helpers import config_of, model_of
from torch import Tensor, nn

from sparring.models import pissa
from sparring.models.loraplus import parameter_groups

BASES = ("llama", "qwen2", "gpt_neo", "gpt2")
IDS = torch.tensor([[5, 9, 17, 33, 2, 41, 7], [3, 3, 99, 21, 8, 60, 11]])
R, ALPHA = 4, 6.0


def lora(name: str, r: int, alpha: float, **more: Any) -> Any:
    settings = {"target_modules": "all-linear", "fan_in_fan_out": name == "gpt2", **more}
    return get_peft_model(model_of(config_of(name)), LoraConfig(r=r, lora_alpha=alpha, **settings), "player")


def ours(name: str, **more: Any) -> Any:
    model = lora(name, 2 * R, 2 * ALPHA, **more)
    pissa.begin(model, "player")
    pissa.hold_half(model, "player")
    return model


def layers(model: Any) -> dict[str, Any]:
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}


def factors(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.lora_A["player"].weight, layer.lora_B["player"].weight


def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


def step(model: Any, optimiser: torch.optim.Optimizer) -> float:
    optimiser.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    optimiser.step()
    return float(loss.item())


@pytest.mark.parametrize("name", BASES)
def test_it_starts_at_the_base_and_leaves_it_alone(name: str) -> None:
    plain = model_of(config_of(name))
    model = ours(name)
    largest = logits(plain).abs().max()
    assert (logits(model) - logits(plain)).abs().max() < 1e-5 * largest
    for path, layer in layers(model).items():
        a, b = factors(layer)
        assert torch.equal(b[:, :R], -b[:, R:]), path
        assert torch.equal(a[:R], a[R:]), path
        assert b[:, :R].any()
        assert (b @ a).abs().max() < 1e-5 * (b[:, :R] @ a[:R]).abs().max()
        weight = plain.get_submodule(path.removeprefix("base_model.model.")).weight
        assert torch.equal(layer.base_layer.weight, weight), path


@pytest.mark.parametrize("rs", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_it_trains_as_pefts_own(name: str, rs: bool) -> None:
    theirs = lora(name, R, ALPHA, init_lora_weights="pissa", use_rslora=rs)
    alpha = ALPHA * (2**0.5 if rs else 2)
    mine = lora(name, 2 * R, alpha, use_rslora=rs)
    pissa.begin(mine, "player")
    pissa.hold_half(mine, "player")
    for path, layer in layers(mine).items():
        a, b = factors(layer)
        their_a, their_b = factors(layers(theirs)[path])
        assert layer.scaling["player"] == pytest.approx(layers(theirs)[path].scaling["player"])
        size = (their_b @ their_a).abs().max()
        assert (b[:, :R] @ a[:R] - their_b @ their_a).abs().max() < 1e-5 * size, path
    # signs of singular vectors are free, and neither SGD nor Adam minds them
    optimisers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
        for model in (theirs, mine)
    ]
    for _ in range(3):
        losses = [step(model, optimiser) for model, optimiser in zip((theirs, mine), optimisers, strict=True)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with torch.no_grad():
        change = (logits(theirs) - logits(model_of(config_of(name)))).abs().max()
        assert (logits(mine) - logits(theirs)).abs().max() < 0.02 * change


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_gradients_of_the_first_step_are_pefts(name: str) -> None:
    theirs = lora(name, R, ALPHA, init_lora_weights="pissa")
    mine = ours(name)
    for model in (theirs, mine):
        model(input_ids=IDS, labels=IDS).loss.backward()
    for path, layer in layers(mine).items():
        a, b = factors(layer)
        their_a, their_b = factors(layers(theirs)[path])
        signs = (a[:R] * their_a).sum(1).sign()
        for own, other in ((a.grad[:R], signs[:, None] * their_a.grad), (b.grad[:, :R], signs * their_b.grad)):
            torch.testing.assert_close(own, other, atol=1e-4 * float(other.detach().abs().max()), rtol=1e-3, msg=path)


def test_half_is_held_and_hooks_do_not_pile_up() -> None:
    model = ours("qwen2")
    calls = [0]

    def counted(gradient: Tensor) -> None:
        calls[0] += 1

    layer = next(iter(layers(model).values()))
    hooks = len(factors(layer)[0]._backward_hooks)
    for _ in range(3):
        model.requires_grad_(False)
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(".player." in key)
        pissa.hold_half(model, "player")
    assert len(factors(layer)[0]._backward_hooks) == hooks == 1
    before = {path: [x.detach().clone() for x in factors(layer)] for path, layer in layers(model).items()}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    losses = [step(model, optimiser) for _ in range(4)]
    assert losses[-1] < losses[0]
    for path, layer in layers(model).items():
        (a, b), (old_a, old_b) = factors(layer), before[path]
        assert torch.equal(a[R:], old_a[R:]), path
        assert torch.equal(b[:, R:], old_b[:, R:]), path
        assert not torch.equal(a[:R], old_a[:R])
        assert not torch.equal(b[:, :R], old_b[:, :R])


def test_new_parameters_get_their_own_hooks() -> None:
    model = ours("llama")
    model.add_adapter("second", LoraConfig(r=2 * R, lora_alpha=2 * ALPHA, target_modules="all-linear"))
    model.set_adapter("second")
    pissa.begin(model, "second")
    pissa.hold_half(model, "second")
    model(input_ids=IDS, labels=IDS).loss.backward()
    layer = next(iter(layers(model).values()))
    assert not layer.lora_A["second"].weight.grad[R:].any()
    assert layer.lora_A["second"].weight.grad[:R].any()


def test_it_is_saved_as_an_ordinary_lora(tmp_path: Path) -> None:
    model = ours("llama")
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model, optimiser)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(model_of(config_of("llama")), str(tmp_path / "player"))
    with torch.no_grad():
        expected = logits(model.eval())
        assert torch.equal(logits(again), expected)
        merged = again.merge_and_unload()
        assert (logits(merged) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_same_seed_gives_the_same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pissa, "EXACT", 8)  # so that the SVD is randomised
    starts = []
    for seed in (1, 1, 2):
        model = lora("llama", 2 * R, 2 * ALPHA)
        torch.manual_seed(seed)
        pissa.begin(model, "player")
        starts.append(torch.cat([x.flatten() for layer in layers(model).values() for x in factors(layer)]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_the_randomised_svd_is_close() -> None:
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(1100, 1100))[0], torch.linalg.qr(torch.randn(1060, 1060))[0]
    s = 30 / (1 + torch.arange(1060.0)) ** 0.5  # slowly falling, as in trained weights
    matrix = u[:, :1060] * s @ v.T
    found_u, found_s, found_v = pissa.principal(matrix, 8)
    torch.testing.assert_close(found_s, s[:8], rtol=1e-4, atol=0)
    exact = u[:, :8] * s[:8] @ v[:, :8].T
    assert (found_u * found_s @ found_v.T - exact).norm() < 1e-2 * exact.norm()


def test_bf16_bases() -> None:
    config = LoraConfig(r=2 * R, lora_alpha=2 * ALPHA, target_modules="all-linear")
    plain = logits(model_of(config_of("llama"), dtype=torch.bfloat16))
    for cast in (True, False):
        base = model_of(config_of("llama"), dtype=torch.bfloat16)
        model = get_peft_model(base, config, "player", autocast_adapter_dtype=cast)
        pissa.begin(model, "player")
        a, b = factors(next(iter(layers(model).values())))
        assert a.dtype == (torch.float32 if cast else torch.bfloat16)
        assert torch.equal(b[:, :R], -b[:, R:])
        assert (logits(model) - plain).abs().max() < 2e-2 * plain.abs().max()


# ------------------------------------------------------------ refusals


def test_what_pissa_cannot_begin_in_is_refused() -> None:
    with pytest.raises(ValueError, match="even LoRA rank"):
        pissa.begin(lora("llama", 3, 1.0), "player")
    with pytest.raises(ValueError, match=r"k_proj, a matrix of \(16, 32\), needs an even LoRA rank of at most 32"):
        pissa.begin(lora("llama", 40, 1.0, target_modules=["k_proj"]), "player")
    with pytest.raises(ValueError, match="does not adapt embeddings"):
        pissa.begin(lora("llama", 8, 1.0, target_modules=["embed_tokens", "q_proj"]), "player")
    with pytest.raises(ValueError, match='"nobody" is none'):
        pissa.begin(lora("llama", 8, 1.0), "nobody")


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_refused(bits: int) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    made = (
        bnb.nn.Linear4bit(64, 64, quant_type="nf4")
        if bits == 4
        else bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    )
    block = nn.ModuleDict({"q": made}).to("cpu")
    setattr(block, f"is_loaded_in_{bits}bit", True)
    model = get_peft_model(block, LoraConfig(r=8, target_modules=["q"]), "player")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds it quantised"):
        pissa.begin(model, "player")


# ------------------------------------------------------------ LoRA+


def test_groups_of_loraplus() -> None:
    model = lora("llama", 4, 8.0)
    named = {key: p for key, p in model.named_parameters() if p.requires_grad}
    slow, fast = parameter_groups(named, 1e-3, 16.0)
    assert (slow["lr"], fast["lr"]) == (1e-3, 1.6e-2)
    assert {id(p) for p in fast["params"]} == {id(p) for key, p in named.items() if ".lora_B." in key}
    assert len(slow["params"]) + len(fast["params"]) == len(named)
    before = {key: p.detach().clone() for key, p in named.items()}
    step(model, torch.optim.SGD([slow, fast]))
    for key, parameter in named.items():
        if ".lora_B." in key:
            torch.testing.assert_close(before[key] - parameter, 1.6e-2 * parameter.grad, rtol=1e-3, atol=1e-7)


def test_embeddings_keep_their_rate_and_nothing_is_nothing() -> None:
    tensor = torch.zeros(2)
    groups = parameter_groups({"x.lora_embedding_B.p": tensor, "x.lora_B.p.weight": tensor + 1}, 1.0, 2.0)
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1.0, 1), (2.0, 1)]
    assert len(parameter_groups({"x.lora_B.p.weight": tensor}, 1.0, 2.0)) == 1
    with pytest.raises(ValueError, match="none of them is trained"):
        parameter_groups({"x.houlsby_up.p.weight": tensor}, 1.0, 2.0)
    with pytest.raises(ValueError, match="above 0"):
        parameter_groups({"x.lora_B.p.weight": tensor}, 1.0, 0.0)
