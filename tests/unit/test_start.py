"""`start: path` with adapters as PEFT can make them: taken whole and exactly, or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.helpers import base_of, random_rows, save_base
from tests.parity.test_architectures import TOKENIZERS
from transformers import AutoModelForCausalLM

from sparring.configfile import build_config
from sparring.errors import ConfigError, InputError, ModelError
from sparring.models.adapters import fingerprint_tensors, settings_of
from sparring.models.adopt import adopt
from sparring.models.players import Player, Ring
from sparring.models.scoring import score
from sparring.start import settled

Made = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2, whose linear layers have biases."""
    return save_base(tmp_path_factory.mktemp("base"), "qwen2", TOKENIZERS["qwen2"]())


@pytest.fixture
def made(folder: Path, tmp_path: Path) -> Made:
    """made(config, **how to save): an adapter that bare PEFT has made, far from zero."""

    def make(config: Any, **saving: Any) -> Path:
        torch.manual_seed(1)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and not name.endswith("bias"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif parameter.requires_grad:
                    parameter.add_(1.0)
        model.save_pretrained(tmp_path / "given", **saving)
        return tmp_path / "given"

    return make


def taken(given: Path, folder: Path, tmp_path: Path, hold: str = "continue") -> tuple[list[float], bool]:
    """(log-probs of the adopted θ_0, whether the base is untouched)."""
    from sparring.config import ModelConfig
    from sparring.models.base import load_base, load_renderer

    config = ModelConfig(base=str(folder), device="cpu", dtype="fp32")
    base = load_base(folder, config, load_renderer(folder, config))
    before = fingerprint_tensors(dict(base.model.state_dict()))
    ring = Ring(base, settings_of(given), "base")
    (tmp_path / "sft").mkdir()
    adopt(ring, given, tmp_path / "sft", hold, tmp_path, "sft")
    ring.seat(Player.load(tmp_path / "sft"))
    found = score(ring.model, base, random_rows(base.vocabulary, count=4), 8192)
    ring.seat(Player.untrained(base))
    return found, fingerprint_tensors(dict(base.model.state_dict())) == before


LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
KINDS = {
    "rslora": LoraConfig(**LORA, use_rslora=True),
    "dora": LoraConfig(**LORA, use_dora=True),
    "some layers": LoraConfig(**LORA, layers_to_transform=[1]),
    "patterns": LoraConfig(**LORA, rank_pattern={"q_proj": 5}, alpha_pattern={"v_proj": 9}),
    "head": LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "ia3 pattern": IA3Config(target_modules=r".*k_proj", feedforward_modules=[], task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_makes_is_taken_exactly(kind: str, made: Made, folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    given = made(KINDS[kind])
    found, untouched = taken(given, folder, tmp_path)
    assert untouched
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), given).eval()
    rows = random_rows(len(TOKENIZERS["qwen2"]()), count=4)
    assert len(found) == len(rows)
    theirs = []
    for prompt, answer in random_rows(model.config.vocab_size, count=4):
        with torch.no_grad():
            logits_LV = model(input_ids=torch.tensor([prompt + answer])).logits[0, -len(prompt + answer) :]
        at = torch.arange(len(prompt) - 1, len(prompt + answer) - 1)
        theirs.append(float(logits_LV.log_softmax(-1)[at, torch.tensor(answer)].sum()))
    assert found == pytest.approx(theirs, abs=1e-3)


REFUSED = {
    "bias": (LoraConfig(**LORA, bias="all"), {}, "has bias: 'all', which players do not have"),
    "pissa": (LoraConfig(**LORA, init_lora_weights="pissa"), {}, "was started as pissa"),
    "olora": (LoraConfig(**LORA, init_lora_weights="olora"), {}, "was started as olora"),
    "replication": (LoraConfig(**LORA, layer_replication=[(0, 2), (1, 2)]), {}, "has layer_replication"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_change_the_base_is_refused(kind: str, made: Made, folder: Path, tmp_path: Path) -> None:
    config, saving, said = REFUSED[kind]
    given = made(config, **saving)
    with pytest.raises(ModelError, match=said):
        taken(given, folder, tmp_path)


def test_embeddings_saved_beside_an_adapter_must_be_the_bases(made: Made, folder: Path, tmp_path: Path) -> None:
    given = made(LoraConfig(**LORA), save_embedding_layers=True)
    tensors = load_file(given / "adapter_model.safetensors")
    name = "base_model.model.model.embed_tokens.weight"
    assert name in tensors
    found, _ = taken(given, folder, tmp_path)
    assert not any("embed" in key for key in load_file(tmp_path / "sft" / "adapter_model.safetensors"))
    save_file({key: value for key, value in tensors.items() if key != name}, given / "adapter_model.safetensors")
    (tmp_path / "without").mkdir()
    assert taken(given, folder, tmp_path / "without")[0] == found
    tensors[name][0, 0] += 1
    save_file(tensors, given / "adapter_model.safetensors", {"format": "pt"})
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match=r"embed_tokens\.weight of its own, which is not the base's"):
        taken(given, folder, tmp_path / "other")


DAMAGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "one is missing": (lambda tensors: tensors.pop(sorted(tensors)[0]), "damaged: it has no"),
    "all are missing": (lambda tensors: tensors.clear(), "damaged: it has no"),
    "another shape": (lambda t: t.update({k: v[:, :1].clone() for k, v in t.items() if "lora_B" in k}), "does not fit"),
    "NaN": (lambda tensors: next(iter(tensors.values())).fill_(float("nan")), "NaN or infinite"),
    "one too many": (lambda tensors: tensors.update(x=torch.zeros(1)), "has no place for"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_adapter_is_refused(kind: str, made: Made, folder: Path, tmp_path: Path) -> None:
    change, said = DAMAGES[kind]
    given = made(LoraConfig(**LORA))
    tensors = load_file(given / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, given / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=said):
        taken(given, folder, tmp_path)


CONFIGS: dict[str, tuple[Any, str]] = {
    "a list": ([], "does not say which kind"),
    "no kind": ({"r": 4}, "does not say which kind"),
    "another kind": ({"peft_type": "VERA"}, "which is not among the methods"),
    "rank": ({"peft_type": "LORA", "r": "many"}, "cannot be used: r is 'many'"),
    "large": ({"peft_type": "LORA", "r": 5000}, "cannot be used: r is 5000"),
    "alpha": ({"peft_type": "LORA", "lora_alpha": -1}, "cannot be used: alpha is -1"),
    "pattern": ({"peft_type": "LORA", "target_modules": "(a"}, "not a regular expression"),
    "both": ({"peft_type": "LORA", "use_dora": True, "use_rslora": True}, "DoRA and rsLoRA at once"),
    "length": ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 0}, "cannot be used: length is 0"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_settings_that_cannot_be_are_one_sentence(kind: str, tmp_path: Path) -> None:
    content, said = CONFIGS[kind]
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError) as refused:
        settled(build_config({"start": str(tmp_path)}))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_a_damaged_record_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (tmp_path / "player.json").write_text(content)
    with pytest.raises(ModelError, match=r"player\.json is damaged"):
        settled(build_config({"start": str(tmp_path)}))


@pytest.mark.parametrize(
    ("theirs", "tree", "said"),
    [
        ({"peft_type": "HOULSBY"}, {"selfplay": {"hold": "merge"}}, "which cannot be merged"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}, {"selfplay": {"hold": "stack"}}, "cannot be left"),
        ({"peft_type": "LORA", "modules_to_save": ["lm_head"]}, {"selfplay": {"hold": "merge"}}, "cannot be merged"),
        ({"peft_type": "LORA", "modules_to_save": ["lm_head"]}, {"selfplay": {"hold": "stack"}}, "cannot be left"),
        (
            {"peft_type": "LORA"},
            {"method": "ia3", "selfplay": {"hold": "stack"}},
            "beside which adapters of method ia3",
        ),
        ({"peft_type": "LORA", "r": 4}, {"method": {"r": 8}}, "the config says method.r 8"),
        ({"peft_type": "LORA", "target_modules": ["q_proj"]}, {"method": {"target_modules": "v_proj"}}, "v_proj"),
        ({"peft_type": "HOULSBY"}, {"method": {"name": "houlsby", "activation": "tanh"}}, "method.activation tanh"),
    ],
)
def test_a_start_that_does_not_go_with_the_config(theirs: Any, tree: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(theirs))
    with pytest.raises(ConfigError) as refused:
        settled(build_config({**tree, "start": str(tmp_path)}))
    assert said in str(refused.value)


def test_a_whole_player_is_not_put_on_a_quantised_base(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "player.json").write_text(
        json.dumps({"base": "", "hold": "continue", "chain": ["."], "fingerprint": ""})
    )
    for model in ({"quantise": "nf4"}, {"dtype": "fp16"}):
        with pytest.raises(ConfigError, match="is not for method full"):
            settled(build_config({"start": str(tmp_path), "model": model}))


def test_names_that_nothing_is_called_are_refused() -> None:
    base = base_of("llama")
    for settings, said in (
        ({"modules_to_save": ["lm_haed"]}, 'modules_to_save names "lm_haed".*did you mean "lm_head"'),
        ({"rank_pattern": {"foo": 4}}, 'rank_pattern names "foo"'),
        ({"alpha_pattern": {"q_prj": 4}}, 'did you mean "q_proj"'),
    ):
        ring = Ring(base, build_config({"method": settings}).method, "base")
        with pytest.raises(InputError, match=said):
            ring.challenge(Player.untrained(base), seed=0)
