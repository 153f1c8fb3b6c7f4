"""Bottleneck adapters: PEFT's whole interface, on several architectures and on quantised bases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from tests.helpers import config_of, model_of
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, OPTConfig, Phi3Config, Qwen3MoeConfig

from sparring.models.bottleneck import (
    ACTIVATIONS,
    BottleneckConfig,
    BottleneckLayer,
    HoulsbyConfig,
    PfeifferConfig,
    output_projections,
)

BASES = ("llama", "qwen2", "gpt_neo", "gpt2")
KINDS = {"houlsby": HoulsbyConfig, "pfeiffer": PfeifferConfig}
IDS = torch.tensor([[5, 9, 17, 33, 2, 41, 7], [3, 3, 99, 21, 8, 60, 11]])
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
PLACES = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen2": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("self_attn.o_proj", "mlp.down_proj"),
    "mistral": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma3": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt_neo": ("attention.out_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gptj": ("attn.out_proj", "mlp.fc_out"),
    "phi3": ("self_attn.o_proj", "mlp.down_proj"),
    "opt": ("self_attn.out_proj", "fc2"),
}
OTHERS = {
    "phi3": lambda: Phi3Config(**SMALL, intermediate_size=48, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32),
}


def base(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return model_of(OTHERS[name]() if name in OTHERS else config_of(name), dtype=dtype)


def adapted(name: str, kind: str = "houlsby", **more: Any) -> Any:
    torch.manual_seed(3)
    return get_peft_model(base(name), KINDS[kind](task_type="CAUSAL_LM", **{"bottleneck": 6, **more})).eval()


def disturb(model: Any, adapter: str, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS, **more: Any) -> Tensor:
    found: Tensor = model(input_ids=ids, **more).logits
    return found


def layers(model: Any) -> dict[str, BottleneckLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BottleneckLayer)}


# ------------------------------------------------------------ where they sit, and how they start


@pytest.mark.parametrize("name", PLACES)
def test_they_sit_behind_the_output_projections(name: str) -> None:
    model = base(name)
    assert output_projections(model, "houlsby") == set(PLACES[name])
    assert output_projections(model, "pfeiffer") == {PLACES[name][1]}
    assert len(layers(adapted(name, "houlsby"))) == 4
    assert len(layers(adapted(name, "pfeiffer"))) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BASES)
def test_a_fresh_adapter_is_the_identity(name: str, kind: str) -> None:
    model = adapted(name, kind)
    assert torch.equal(logits(model), logits(base(name)))
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    for key, parameter in model.named_parameters():
        own = f".{kind}_" in key
        assert parameter.requires_grad == own
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (own and "_up." in key)


@pytest.mark.parametrize(("kind", "act"), [("houlsby", "gelu"), ("pfeiffer", "relu"), ("pfeiffer", "tanh")])
def test_the_formula(kind: str, act: str) -> None:
    model = adapted("gpt2", kind, **({"activation": act} if act == "tanh" else {}))  # the others are defaults
    disturb(model, "default")
    path, layer = list(layers(model).items())[-1]
    assert path.endswith("mlp.c_proj")
    x = torch.randn(2, 3, 128)
    down, up = (getattr(layer, f"{kind}_{part}")["default"] for part in ("down", "up"))
    h = layer.base_layer(x)
    expected = h + ACTIVATIONS[act](h @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(layer(x), expected)
    assert not torch.allclose(layer(x), h)


def test_its_size_and_start() -> None:
    config = HoulsbyConfig(reduction_factor=4)
    assert (config.width(32), HoulsbyConfig().width(8), HoulsbyConfig(bottleneck=5).width(32)) == (8, 1, 5)
    wide = nn.Linear(8, 4096)
    layer = BottleneckLayer(wide, "houlsby", 4096)
    layer.update_layer("a", HoulsbyConfig(bottleneck=64))
    down, up = layer.get_submodule("houlsby_down.a"), layer.get_submodule("houlsby_up.a")
    assert down.weight.std().item() == pytest.approx(4096**-0.5, rel=0.02)
    assert not any(tensor.any() for tensor in (down.bias, up.weight, up.bias))


# ------------------------------------------------------------ refusals


def test_a_base_without_output_projections_is_refused() -> None:
    mamba = base("mamba")
    with pytest.raises(ValueError, match=r"not one feed-forward output projection.*down_proj.*target_modules"):
        get_peft_model(mamba, PfeifferConfig())
    model = get_peft_model(mamba, PfeifferConfig(target_modules=["mixer.out_proj"]))
    assert len(layers(model)) == 2


def test_experts_are_refused() -> None:
    config = Qwen3MoeConfig(**SMALL, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2)
    with pytest.raises(ValueError, match="mixture of experts"):
        get_peft_model(AutoModelForCausalLM.from_config(config), PfeifferConfig())
    block = nn.ModuleDict({"experts": nn.ModuleList([nn.ModuleDict({"down_proj": nn.Linear(4, 4)})])})
    with pytest.raises(ValueError, match="several experts"):
        get_peft_model(block, PfeifferConfig(target_modules=["down_proj"]))  # type: ignore[arg-type]


def test_a_layer_left_out_is_refused() -> None:
    model = base("llama")
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(ValueError, match="in every layer"):
        output_projections(model, "pfeiffer")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"activation": "swish"}, "gelu, relu, silu, tanh"),
        ({"reduction_factor": 0}, "above 0"),
        ({"bottleneck": 0}, "at least 1"),
        ({"bottleneck_dropout": 1.0}, r"not in \[0, 1\)"),
        ({"target_modules": "all-linear"}, "all-linear"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BottleneckConfig(**settings)


def test_only_linear_layers_are_adapted() -> None:
    with pytest.raises(ValueError, match="is a Embedding; bottleneck adapters sit behind linear layers"):
        get_peft_model(base("llama"), PfeifferConfig(target_modules=["embed_tokens"]))


@pytest.mark.parametrize("kind", KINDS)
def test_merging_is_refused(kind: str) -> None:
    model = adapted("llama", kind)
    for merge in (model.merge_and_unload, model.merge_adapter, next(iter(layers(model).values())).merge):
        with pytest.raises(ValueError, match="cannot be merged"):
            merge()
    assert len(layers(model)) == (4 if kind == "houlsby" else 2)


def test_the_two_kinds_do_not_mix() -> None:
    model = adapted("llama", "houlsby")
    with pytest.raises(ValueError):
        model.add_adapter("other", PfeifferConfig())
    with pytest.raises(ValueError):
        model.add_adapter("other", LoraConfig())


# ------------------------------------------------------------ several on one base


@pytest.mark.parametrize("name", BASES)
def test_several_adapters(name: str) -> None:
    model, plain = adapted(name), logits(base(name))
    disturb(model, "default")
    one = logits(model)
    model.add_adapter("second", HoulsbyConfig(bottleneck=3))
    disturb(model, "second", seed=2)
    assert torch.equal(logits(model), one), "adding must not change what is active"

    model.set_adapter("second")
    two = logits(model)
    assert not torch.allclose(one, two)
    assert {key for key, p in model.named_parameters() if p.requires_grad} == {
        key for key, _ in model.named_parameters() if ".second." in key
    }
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), two)

    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    model.base_model.set_adapter(["second", "default"])
    assert not torch.equal(logits(model), both), "one after another, in the order of activation"

    model.base_model.set_adapter(["default", "second"])
    model.delete_adapter("second")
    assert torch.equal(logits(model), one)
    assert not [key for key, _ in model.named_parameters() if ".second." in key]


def test_the_order_of_activation() -> None:
    model = adapted("llama")
    model.add_adapter("second", HoulsbyConfig(bottleneck=3))
    disturb(model, "default")
    disturb(model, "second", seed=2)
    layer = next(iter(layers(model).values()))
    model.base_model.set_adapter(["second", "default"])
    x = torch.randn(1, 2, 32)
    expected = layer._adapted(layer._adapted(layer.base_layer(x), "second"), "default")
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("name", BASES)
def test_unload_gives_the_base_back(name: str) -> None:
    plain = base(name)
    before = dict(plain.named_modules())
    weights = {key: value.clone() for key, value in plain.state_dict().items()}
    model = get_peft_model(plain, HoulsbyConfig(bottleneck=4))
    disturb(model, "default")
    back = model.unload()
    after = dict(back.named_modules())
    assert back is plain
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)
    assert all(torch.equal(weights[key], value) for key, value in back.state_dict().items())


@pytest.mark.parametrize("name", BASES)
def test_mixed_batches(name: str) -> None:
    model = adapted(name)
    model.add_adapter("second", HoulsbyConfig(bottleneck=3, target_modules=[PLACES[name][1]]))
    disturb(model, "default")
    disturb(model, "second", seed=2)
    ids = IDS[:1].expand(3, -1)
    mixed = logits(model, ids, adapter_names=["second", "__base__", "default"])
    with model.disable_adapter():
        plain = logits(model, ids)
    first = logits(model, ids)
    model.set_adapter("second")
    second = logits(model, ids)
    torch.testing.assert_close(mixed, torch.stack([second[0], plain[1], first[2]]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(first, second)
    assert torch.equal(logits(model, ids), second), "the names are forgotten after the call"
    sampled = model.generate(
        input_ids=ids, adapter_names=["second", "__base__", "default"], max_new_tokens=3, num_beams=2, pad_token_id=0
    )
    assert sampled.shape[0] == 3


def test_mixed_batches_that_do_not_fit_are_refused() -> None:
    model = adapted("llama")
    with pytest.raises(ValueError, match="do not fit a batch of shape"):
        logits(model, adapter_names=["default"])
    with pytest.raises(ValueError, match=r"\['nobody'\] are not known"):
        logits(model, adapter_names=["default", "nobody"])
    model.train()
    with pytest.raises(ValueError, match="for inference"):
        logits(model, adapter_names=["default", "default"])
    flat = adapted("opt")  # this architecture makes one row of its batch before fc2
    with pytest.raises(ValueError, match="do not fit"):
        logits(flat, adapter_names=["default", "default"])


# ------------------------------------------------------------ on disk


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BASES)
def test_saved_and_loaded(name: str, kind: str, tmp_path: Path) -> None:
    model = adapted(name, kind, activation="silu", bottleneck_dropout=0.25)
    disturb(model, "default")
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert about["peft_type"] == kind.upper()
    assert about["activation"] == "silu"
    assert set(about["target_modules"]) == set(PLACES[name][kind == "pfeiffer" :])
    again = PeftModel.from_pretrained(base(name), str(tmp_path)).eval()
    assert torch.equal(logits(again), logits(model))
    assert not any(p.requires_grad for p in again.parameters())
    again.load_adapter(str(tmp_path), "other", is_trainable=True)
    again.set_adapter("other")
    assert torch.equal(logits(again.eval()), logits(model))
    assert type(PeftConfig.from_pretrained(str(tmp_path))) is KINDS[kind]


def test_state_dicts() -> None:
    model = adapted("qwen2")
    disturb(model, "default")
    model.add_adapter("second", HoulsbyConfig(bottleneck=6))
    state = get_peft_model_state_dict(model, adapter_name="default")
    assert len(state) == 4 * 4
    assert not any("default" in key or "second" in key or "base_layer" in key for key in state)
    set_peft_model_state_dict(model, state, adapter_name="second")
    one = logits(model)
    model.set_adapter("second")
    assert torch.equal(logits(model), one)


def test_auto_classes_and_transformers_own_loading(tmp_path: Path) -> None:
    plain = base("llama")
    plain.save_pretrained(tmp_path / "base")
    model = get_peft_model(plain, PfeifferConfig(task_type="CAUSAL_LM", bottleneck=4)).eval()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    disturb(model, "default")
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    auto = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(auto), expected)
    direct = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    direct.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(direct.eval()), expected)


def test_a_bare_script_must_import_the_module(tmp_path: Path) -> None:
    adapted("llama").save_pretrained(tmp_path)
    script = f"""
from peft import PeftConfig
try:
    PeftConfig.from_pretrained({str(tmp_path)!r})
except KeyError as error:
    print(error)
import sparring.models.bottleneck
print(PeftConfig.from_pretrained({str(tmp_path)!r}).peft_type.value)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["'HOULSBY'", "HOULSBY"]


def test_the_types_are_full_members() -> None:
    assert PeftType("HOULSBY") is PeftType.HOULSBY is PeftType["HOULSBY"]
    assert [kind for kind in PeftType if kind.value in ("HOULSBY", "PFEIFFER")] == ["HOULSBY", "PFEIFFER"]
    assert PeftType.LORA == "LORA"


# ------------------------------------------------------------ training, and other bases


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_gradient_checkpointing(name: str, reentrant: bool) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = adapted(name)
        disturb(model, "default")
        model.train()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.requires_grad})
    assert gradients[0]
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


def test_dropout_is_where_it_can_be_set() -> None:
    model = adapted("llama").train()
    disturb(model, "default")
    calm = logits(model)
    names = [key for key, module in model.named_modules() if isinstance(module, nn.Dropout)]
    assert len(names) == 4
    assert all(key.endswith(".bottleneck_dropout.default") for key in names)
    for key in names:
        model.get_submodule(key).p = 0.5
    assert not torch.allclose(logits(model), calm)
    assert torch.equal(logits(model.eval()), calm)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases(dtype: torch.dtype) -> None:
    model = get_peft_model(base("llama", dtype), HoulsbyConfig(bottleneck=4)).eval()
    assert torch.equal(logits(model), logits(base("llama", dtype)))
    assert logits(model).dtype == dtype
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    kept = get_peft_model(base("llama", dtype), HoulsbyConfig(bottleneck=4), autocast_adapter_dtype=False).eval()
    assert {p.dtype for p in kept.parameters()} == {dtype}
    assert torch.equal(logits(kept), logits(model))


def quantised(folder: Path, bits: int) -> Any:
    chosen = (
        BitsAndBytesConfig(load_in_8bit=True)
        if bits == 8
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=chosen, dtype=torch.float32).eval()
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # else an eval forward repacks the weights in place
    return model


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["llama", "gpt_neo", "gpt2"])
def test_quantised_bases(name: str, bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    # bitsandbytes wants sizes that are multiples of 64
    sizes: dict[str, Any] = {
        "llama": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        "gpt_neo": {"hidden_size": 64},
        "gpt2": {"n_embd": 64},
    }
    config = config_of(name)
    for key, value in sizes[name].items():
        setattr(config, key, value)
    model_of(config, sharp=1.0).save_pretrained(tmp_path)
    plain = quantised(tmp_path, bits)
    expected = logits(plain)
    bytes_before = {key: value.clone() for key, value in plain.state_dict().items()}
    model = get_peft_model(plain, HoulsbyConfig(bottleneck=4)).eval()
    kinds = {type(layer.base_layer).__name__ for layer in layers(model).values()}
    assert kinds == {"Linear4bit" if bits == 4 else "Linear8bitLt"}
    assert torch.equal(logits(model), expected)

    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = model.train()(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-3
    assert all(p.grad is not None and p.grad.any() for p in trained)
    with model.disable_adapter():
        assert torch.equal(logits(model.eval()), expected)
    back = model.unload()
    assert all(torch.equal(bytes_before[key], value) for key, value in back.state_dict().items())
