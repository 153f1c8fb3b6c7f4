"""`sparring import`: adapters as PEFT, TRL and Unsloth write them, measured and verified, or refused in a line."""

from __future__ import annotations

import json
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tests.helpers import save_base
from tests.imports import FAST, LORA, ROWS, Made, imported, moved, said
from tests.parity.test_architectures import TOKENIZERS
from tests.unit.test_cli import call, refused
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sparring.browse import answer, find_run
from sparring.data.pairs import Prompt, Rows
from sparring.errors import ConfigError, LawBroken, ModelError
from sparring.export.bare import bare_model
from sparring.export.merged import merge_run
from sparring.importing import check as adapter_check
from sparring.importing.adapter import import_adapter, left_out, look_at
from sparring.importing.check import Verified

KINDS: dict[str, tuple[Any, str]] = {
    "all linear": (LoraConfig(**{**LORA, "target_modules": "all-linear"}), "lora, rank 3, alpha 6"),
    "rslora": (LoraConfig(**LORA, use_rslora=True), "rslora, rank 3, alpha 6"),
    "dora": (LoraConfig(**LORA, use_dora=True), "dora, rank 3, alpha 6"),
    "patterns": (LoraConfig(**LORA, rank_pattern={"q_proj": 5}), "rank_pattern for q_proj"),
    "head": (LoraConfig(**LORA, modules_to_save=["lm_head"]), "whole beside it: lm_head"),
    "embeddings": (LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"]), "embed_tokens"),
    "ia3": (
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
        "ia3",
    ),
    "prompt": (PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "prompt, 3 virtual tokens"),
    "prefix": (PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "prefix, 3 virtual tokens"),
    "targeted embedding": (LoraConfig(**{**LORA, "target_modules": ["q_proj", "embed_tokens"]}), "lora"),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_makes_is_measured_and_verified(kind: str, made: Made, base: Path) -> None:
    config, said = KINDS[kind]
    given = made(config)
    seen = look_at(str(given))
    assert said in seen.text()
    assert seen.base.name == str(base)
    run, _, found = imported(given)
    assert found.holds
    assert found.rms < 1e-5
    assert found.effect > 1e-3
    assert abs(found.off) < 1e-6
    assert found.answers == len(ROWS) - 1
    scores = json.loads((run / "base-scores" / "phase.json").read_text())["facts"]
    assert scores["nll"] != pytest.approx(found.nll, abs=1e-4)
    assert json.loads((run / "sft-scores" / "phase.json").read_text())["facts"]["nll"] == pytest.approx(found.nll)
    assert json.loads((run / "verified.json").read_text())["holds"] is True


@pytest.mark.filterwarnings("ignore:PiSSA changes:UserWarning")
def test_a_converted_pissa_is_a_plain_lora(base: Path, here: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA, init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(here / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    moved(model).save_pretrained(here / "given", path_initial_model_for_weight_conversion=str(here / "start"))
    model.save_pretrained(here / "raw")
    with pytest.raises(ModelError, match="was started as pissa"):
        look_at(str(here / "raw"))
    run, seen, found = imported(here / "given")
    assert "lora, rank 6, alpha 12" in seen.text()
    assert found.holds
    # PEFT's own player, on the base that PiSSA has changed, is the converted one on the plain base
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        want = model.eval()(input_ids=ids).logits
        got = bare_model(base, read_config_of(run), here / "given").eval()(input_ids=ids).logits
    assert torch.allclose(want, got, atol=1e-3)


def read_config_of(run: Path) -> Any:
    from sparring.browse import read_settings
    from sparring.config import Config

    return Config.model_validate(read_settings(run)).model


def test_parameters_of_experts(here: Path) -> None:
    from transformers import Qwen3MoeConfig

    tokenizer = TOKENIZERS["qwen3"]()
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=128,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(here / "moe")
    tokenizer.save_pretrained(here / "moe")
    asked = LoraConfig(**LORA, target_parameters=["mlp.experts.gate_up_proj"])
    moved(get_peft_model(AutoModelForCausalLM.from_pretrained(here / "moe"), asked)).save_pretrained(here / "given")
    assert "parameters mlp.experts.gate_up_proj" in look_at(str(here / "given")).text()
    run, _, found = imported(here / "given")
    assert found.holds
    assert abs(merge_run(run, here / "merged").off) < 1e-6


# ---------------------------------------------------------------- tools


def test_what_unsloth_writes(made: Made, base: Path, here: Path) -> None:
    """Its config has the base in 4 bits by name, an auto_mapping of its own, and modules as a pattern."""
    pattern = r"(?:.*?(?:self_attn|attention).*?(?:q_proj|v_proj))"
    given = made(LoraConfig(**{**LORA, "target_modules": pattern}))
    about = json.loads((given / "adapter_config.json").read_text())
    about |= {
        "base_model_name_or_path": "unsloth/tiny-qwen2-unsloth-bnb-4bit",
        "auto_mapping": {
            "base_model_class": "Qwen2ForCausalLM",
            "parent_library": "transformers.models.qwen2.modeling_qwen2",
            "unsloth_fixed": True,
        },
    }
    (given / "adapter_config.json").write_text(json.dumps(about))
    TOKENIZERS["qwen2"]().save_pretrained(given)
    seen = look_at(str(given), base=str(base))
    assert "made by    Unsloth, PEFT" in seen.text()
    assert "trained on a base in 4 bits" in look_at(str(given)).text()
    _, seen, found = imported(given, base=str(base))
    assert found.holds
    assert any("in 16 bits its numbers differ slightly" in note for note in seen.notes)
    gpt = save_base(here / "gpt2", "gpt2", TOKENIZERS["gpt2"]())
    assert "it was trained on a Qwen2ForCausalLM, and this is a GPT2LMHeadModel" in said(given, base=str(gpt))


def test_every_verb_takes_an_import(made: Made, base: Path, here: Path) -> None:
    given = made(LoraConfig(**LORA))
    run, _, found = imported(given, name="taken")
    assert find_run("taken", Path("runs")) == run
    assert answer(run, "1 and 2:", "best", 1, 0, 1.0, 3)
    merged = merge_run(run, here / "merged")
    assert merged.nll(2) == pytest.approx(found.nll, abs=1e-6)
    # the adapter's own folder is not needed any more
    shutil.rmtree(given)
    assert answer(run, "1 and 2:", "sft", 1, 0, 1.0, 3)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "mistral"])
def test_on_other_architectures(name: str, here: Path) -> None:
    folder = save_base(here / "other", name, TOKENIZERS[name]())
    asked = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2")
    moved(get_peft_model(AutoModelForCausalLM.from_pretrained(folder), asked)).save_pretrained(here / "given")
    assert imported(here / "given", "chats.jsonl")[2].holds


def test_a_run_of_ours_and_its_players(made: Made, here: Path) -> None:
    run, _, found = imported(made(LoraConfig(**LORA)))
    assert "is a run, whose players need no import" in said(run)
    assert "made by    Sparring, PEFT" in look_at(str(run / "sft")).text()
    _, _, again = imported(run / "sft", name="again")
    assert (again.holds, again.nll) == (True, found.nll)


def test_settings_that_this_peft_does_not_know_are_told_of(made: Made) -> None:
    given = made(LoraConfig(**LORA))
    about = json.loads((given / "adapter_config.json").read_text())
    assert "does not know" not in look_at(str(given)).text()
    (given / "adapter_config.json").write_text(json.dumps(about | {"use_later": True, "not_in_force": None}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says so too
        assert "its config has use_later, which the PEFT here does not know" in look_at(str(given)).text()


def test_the_command_line(made: Made, here: Path, capsys: Any) -> None:
    given = str(made(LoraConfig(**LORA)))
    assert call("import", given) == 0
    assert f"to measure and verify it: sparring import {given} --data FILE" in capsys.readouterr().out
    assert not (here / "runs").exists()
    assert call("import", given, "--json") == 0
    assert json.loads(capsys.readouterr().out)["method"]["r"] == 3
    assert call("import", given, "--data", "rows.jsonl", *FAST) == 0
    out = capsys.readouterr().out
    assert out.index("adapter    ") < out.index("θ_0 (start)")
    assert "verified: on 11 held-out answers (33 tokens, fp32)" in out
    assert call("import", given, "--data", "rows.jsonl", *FAST, "--name", "j", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "adapter"
    assert events[-1] | {"holds": True, "run": "runs/j"} == events[-1]
    assert call("import", given, "threads=1") == 2
    assert "give --data FILE" in capsys.readouterr().err
    assert "nowhere does not exist" in refused(capsys, "import", "./nowhere")


def test_an_import_trains_nothing(made: Made, here: Path) -> None:
    given = made(LoraConfig(**LORA))
    for change in ("selfplay.iterations=1", "start=x", "compare.seeds=[0]"):
        with pytest.raises(ConfigError, match="an import trains nothing"):
            imported(given, overrides=[change])
    assert not (here / "runs").exists()


def test_a_player_that_is_not_pefts_breaks_law_12(made: Made, here: Path, monkeypatch: Any) -> None:
    given = made(LoraConfig(**LORA))
    bare = adapter_check.token_logprobs
    monkeypatch.setattr(adapter_check, "token_logprobs", lambda model, rows: bare(model, rows) + 2e-4)
    with pytest.raises(LawBroken, match=r"law 12: the player of runs/given .* 0\.0002 nats per token apart"):
        imported(given)
    assert json.loads((here / "runs" / "given" / "verified.json").read_text())["holds"] is False
    monkeypatch.setattr(adapter_check, "token_logprobs", bare)
    assert imported(given)[2].holds  # the same command again measures nothing anew, and verifies


def test_what_rounding_would_hide_is_not_called_verified() -> None:
    """A tolerance that the base alone would meet says nothing of the adapter."""
    near = {"near": 0.09, "tolerance": 0.005}
    seen = Verified(10, 100, "bf16", 1.0, 1.001, rms=0.03, effect=0.04, **near)
    assert (seen.holds, seen.broken, seen.drowned) == (False, False, True)
    assert seen.facts()["holds"] is None
    assert seen.text().startswith("not verified: in bf16 the player is 0.03 nats per token from PEFT's own")
    assert Verified(10, 100, "bf16", 1.0, 1.001, rms=0.03, effect=0.4, **near).holds
    assert Verified(10, 100, "fp32", 1.0, 1.0, rms=1e-8, effect=0.0, **near).holds  # an adapter that does nothing
    for rms, their_nll in ((0.1, 1.0), (0.01, 1.01), (float("nan"), 1.0)):
        assert Verified(10, 100, "bf16", 1.0, their_nll, rms=rms, effect=3.0, **near).broken


def test_in_16_bits_the_kernels_own_noise_is_allowed_for(made: Made) -> None:
    _, _, found = imported(made(LoraConfig(**LORA)), overrides=["model.dtype=bf16"])
    assert found.holds
    assert found.near >= 2e-2
    assert "bf16" in found.text()


def test_a_base_in_the_hubs_cache(made: Made, base: Path, here: Path, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    from sparring.report.findings import warnings_of
    from sparring.report.records import read_run

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))
    for name, source in (("models--owner--tiny", base), ("models--owner--mine", made(LoraConfig(**LORA)))):
        shutil.copytree(source, here / "hub" / name / "snapshots" / "c0ffee")
        (here / "hub" / name / "refs").mkdir()
        (here / "hub" / name / "refs" / "main").write_text("c0ffee")
    adapter = here / "hub" / "models--owner--mine" / "snapshots" / "c0ffee"
    about = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": "owner/tiny"}))
    assert "base       owner/tiny: in the hub's cache here" in look_at("owner/mine").text()
    four = made(LoraConfig(**LORA), "four")
    (four / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": "owner/tiny-bnb-4bit"}))
    assert "owner/tiny, the same in 16 bits, is in the hub's cache here: --base owner/tiny" in look_at(str(four)).text()
    assert "owner/tiny-bnb-4bit: compared with" in look_at(str(four), base="owner/tiny").text()
    run, _, found = import_adapter("owner/mine", "rows.jsonl", overrides=FAST)
    assert run.name == "mine"
    assert found.holds
    assert not any("it was trained on" in text for text in warnings_of(read_run(run)))


def test_answers_may_be_as_long_as_any_real_one(made: Made, here: Path) -> None:
    """One prompt is left to the training side, whose longest answer limits others only where something trains."""
    long = {"prompt": "3 and 3:", "completion": " one two three four five six seven eight nine ten"}
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, long]))
    run, _, found = imported(made(LoraConfig(**LORA)), overrides=["generation.max_new_tokens=null"])
    sides = [Rows([run / "data" / f"{side}.arrow"], Prompt).lengths("real_ids") for side in ("train", "eval")]
    assert (len(sides[0]), len(sides[1])) == (1, found.answers)
    answers = (run / "sft-scores" / "answers.jsonl").read_text().splitlines()
    given = [len(json.loads(line)["ids"][0]) for line in answers]
    assert max(sides[0]) < max(given) <= max(sides[1])


def test_rows_beyond_the_limit_are_told_of(made: Made, here: Path) -> None:
    given = made(LoraConfig(**LORA))
    run, _, _ = imported(given, overrides=["data.eval_limit=5"])
    assert left_out(run) == "6 more rows were not measured: data.eval_limit=11 takes them all"
    assert left_out(imported(given, name="all")[0]) == ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_what_trl_writes(kind: str, here: Path) -> None:
    """Trained by TRL on the laboratory's base: the folder and its checkpoint, as its Trainer leaves them."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from sparring.laboratory import base_folder

    rows = [{"prompt": f"{a}+{b}+1=", "completion": f"{a}+{b}={(a + b) % 10}"} for a in range(4) for b in range(4)]
    if kind == "DPO":
        rows = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "1"} for r in rows]
    config, trainer = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")
    common = {"max_steps": 3, "save_steps": 3, "learning_rate": 1e-2, "max_length": 64, "use_cpu": True, "bf16": False}
    told = config(output_dir=str(here / "out"), report_to="none", disable_tqdm=True, logging_steps=3, **common)
    asked = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=kind == "DPO")
    made = trainer(str(base_folder()), args=told, train_dataset=Dataset.from_list(rows), peft_config=asked)
    made.train()
    made.save_model()
    text = look_at(str(here / "out")).text()
    assert f"made by    TRL {trl.__version__} ({kind}), PEFT" in text
    assert f"method     {'rslora' if kind == 'DPO' else 'lora'}, rank 4, alpha 8" in text
    assert "tokenizer  beside it: the same tokens as the base's" in text
    assert "checkpoints lie below it (1)" in text
    assert "at step 3 of 3" in look_at(str(here / "out" / "checkpoint-3")).text()
    run, _, found = import_adapter(str(here / "out" / "checkpoint-3"), "laboratory", overrides=FAST)
    assert run.name == "out-checkpoint-3"
    assert found.holds
    assert found.rms < 1e-5


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="quantised bases need bitsandbytes, which is not here")
def test_on_a_quantised_base(made: Made, base: Path, here: Path) -> None:
    given = made(LoraConfig(**LORA))
    _, _, found = imported(given, name="four", overrides=["model.quantise=nf4"])
    assert found.holds
    assert found.rms < 1e-4
    _, _, found = imported(given, name="eight", overrides=["model.quantise=int8"])
    assert found.text().startswith("not verified: on an int8 base PEFT alone gives other numbers")
    assert found.facts()["nll"] is None
    # a base that comes in 4 bits
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(base, quantization_config=four).save_pretrained(here / "four")
    TOKENIZERS["qwen2"]().save_pretrained(here / "four")
    seen = look_at(str(given), base=str(here / "four"))
    assert "the base comes quantised (nf4)" in seen.text()
    _, _, found = imported(given, name="stored", base=str(here / "four"))
    assert found.holds
