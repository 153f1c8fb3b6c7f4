"""`sparring import ADAPTER`: what is seen of an adapter without loading a model, and what is refused in a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import (
    LoHaConfig,
    LoraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from tests.helpers import CHATML, byte_tokenizer, save_base
from tests.imports import LORA, Made, imported, said
from tests.parity.test_architectures import IM, TOKENIZERS
from transformers import AutoModelForCausalLM

from sparring.errors import InputError, ModelError, SparringError
from sparring.importing.adapter import look_at

# ---------------------------------------------------------------- refused in one sentence


def test_what_is_no_adapter_is_told_of(made: Made, base: Path, here: Path) -> None:
    given = made(LoraConfig(**LORA))
    assert "give its folder" in said(given / "adapter_model.safetensors")
    (here / "a.gguf").write_bytes(b"GGUF1234")
    assert "is a GGUF file, which llama.cpp reads" in said(here / "a.gguf")
    assert "is a whole model, not an adapter; give it as model.base" in said(base)
    assert "nowhere does not exist" in said(here / "nowhere")
    assert "nothing is downloaded without being asked" in said("owner/name")
    assert "hf download owner/name" in said("owner/name")
    (here / "empty").mkdir()
    assert "holds no adapter" in said(here / "empty")
    shutil.move(here / "a.gguf", here / "empty" / "a.gguf")
    assert "holds a GGUF file" in said(here / "empty")
    weights = given / "adapter_model.safetensors"
    (given / "adapter_model.bin").write_bytes(weights.read_bytes())
    kept = weights.read_bytes()
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in said(given)
    weights.unlink()
    text = said(given)
    assert "pickled weights (adapter_model.bin), which are not loaded" in text
    assert "save_pretrained writes adapter_model.safetensors" in text
    (given / "adapter_model.bin").unlink()
    assert "but no weights" in said(given)
    weights.write_bytes(kept)
    (given / "adapter_config.json").unlink()
    assert "has weights but no adapter_config.json" in said(given)
    (given / "adapter_config.json").write_text('{"fine_tune_type": "lora", "num_layers": 4}')
    assert "an adapter of MLX" in said(given)


def test_several_in_one_folder(made: Made, base: Path, here: Path) -> None:
    made(LoraConfig(**LORA), "out/checkpoint-20")
    last = made(LoraConfig(**LORA), "out/checkpoint-100")
    (last / "trainer_state.json").write_text(
        '{"global_step": 100, "max_steps": 120, "best_model_checkpoint": "/elsewhere/out/checkpoint-20"}'
    )
    text = said(here / "out")
    assert "checkpoints (checkpoint-20, checkpoint-100); give one: " in text
    assert text.endswith("checkpoint-100; its Trainer found checkpoint-20 best")
    assert "a checkpoint of a Trainer at step 100 of 120" in look_at(str(last)).text()
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA), adapter_name="one")
    model.add_adapter("two", LoraConfig(**LORA))
    model.save_pretrained(here / "both")
    assert "several adapters in folders of their own (one, two); give one" in said(here / "both")
    shutil.copytree(here / "both" / "two", here / "both", dirs_exist_ok=True)
    assert "other adapters lie below it (one, two)" in look_at(str(here / "both")).text()
    assert "every B matrix is 0" in look_at(str(here / "both" / "one")).text()


def test_kinds_that_no_player_is(made: Made) -> None:
    assert "an adapter of type LOHA, which is not among the methods" in said(
        made(LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), "loha")
    )
    given = made(LoraConfig(**LORA))
    about = json.loads((given / "adapter_config.json").read_text())
    (given / "adapter_config.json").write_text(json.dumps(about | {"task_type": "SEQ_CLS"}))
    assert "was trained for SEQ_CLS" in said(given)


def changed(given: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    tensors = load_file(given / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, given / "adapter_model.safetensors", {"format": "pt"})
    return given


def test_what_does_not_fit_is_found_before_loading(made: Made, base: Path, here: Path, monkeypatch: Any) -> None:
    given = made(LoraConfig(**LORA))
    other = save_base(here / "gpt2", "gpt2", TOKENIZERS["gpt2"]())
    short = save_base(here / "short", "qwen2", TOKENIZERS["qwen2"]())
    about = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(about | {"num_hidden_layers": 1, "layer_types": ["full_attention"]}))
    narrow = save_base(here / "narrow", "llama", TOKENIZERS["qwen2"]())
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # nothing may be loaded from here on
    assert "does not fit this base (Target modules" in said(given, base=str(other))
    assert "has no place for" in said(given, base=str(short))
    assert look_at(str(given), base=str(narrow)).words is not None  # the same shapes: a base alike cannot be told
    changed(given, lambda tensors: tensors.pop(sorted(tensors)[0]))
    assert "is damaged: it has no base_model.model.model.layers.0.self_attn.q_proj.lora_A" in said(given)
    changed(given, lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    assert "NaN or infinite numbers in" in said(given)


def test_a_base_that_is_not_here(made: Made, here: Path) -> None:
    given = made(LoraConfig(**LORA))
    about = json.loads((given / "adapter_config.json").read_text())
    for name, text in (
        ("unsloth/tiny-bnb-4bit", "or --base unsloth/tiny to have it downloaded (the same base in 16 bits)"),
        ("owner/tiny", "not on this machine; give --base FOLDER, or --base owner/tiny"),
        ("/content/model", "a folder that is not on this machine; give --base FOLDER"),
        (None, "the adapter does not name its base"),
    ):
        (given / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": name}))
        assert text in look_at(str(given)).text()
        with pytest.raises(ModelError) as refused:
            imported(given)
        assert text in str(refused.value)
    assert not (here / "runs").exists()
    assert "--base nowhere is" in said(given, base="nowhere")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_resized_embeddings_are_refused(base: Path, here: Path) -> None:
    for name, kept in (("trained", ["embed_tokens"]), ("saved", None)):
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(model.config.vocab_size + 8)
        wrapped = get_peft_model(model, LoraConfig(**LORA, modules_to_save=kept))
        wrapped.save_pretrained(here / name, save_embedding_layers=True)
        assert "its vocabulary was changed; merge it with PEFT" in said(here / name)


# ---------------------------------------------------------------- tokenizers and templates

OTHER = CHATML.replace("<|im_start|>", "<|im_start|>the ")


def test_the_adapters_own_template_is_used(made: Made, base: Path, here: Path) -> None:
    given = made(LoraConfig(**LORA))
    tokenizer = TOKENIZERS["qwen2"]()
    tokenizer.chat_template = OTHER
    tokenizer.save_pretrained(given)
    assert "with another chat template: the adapter's is used" in look_at(str(given)).text()
    run, seen, found = imported(given, "chats.jsonl")
    assert found.holds
    assert seen.words.template == tokenizer.chat_template
    assert (here / "runs" / "given.jinja").read_text() == tokenizer.chat_template
    row = json.loads((run / "sft-scores" / "answers.jsonl").read_text().splitlines()[0])
    assert row["prompt"].startswith("the user\nHow many")
    # another import of that name does not touch it
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<|im_start|>one ")
    tokenizer.save_pretrained(given)
    with pytest.raises(InputError, match="was imported with another chat template"):
        imported(given, "chats.jsonl")
    assert "|>the " in (here / "runs" / "given.jinja").read_text()
    # asked for by name, another is taken, and nothing is written
    other, _, _ = imported(given, "chats.jsonl", name="plain", overrides=["model.template=plain"])
    row = json.loads((other / "sft-scores" / "answers.jsonl").read_text().splitlines()[0])
    assert row["prompt"].startswith("### User:")
    assert not (here / "runs" / "plain.jinja").exists()


def test_a_template_is_forgotten_with_a_run_that_is_refused(made: Made, here: Path) -> None:
    given = made(LoraConfig(**LORA))
    tokenizer = TOKENIZERS["qwen2"]()
    tokenizer.chat_template = OTHER
    tokenizer.save_pretrained(given)
    with pytest.raises(SparringError, match="max_length"):
        imported(given, "chats.jsonl", overrides=["data.max_length=100000"])
    assert not list((here / "runs").iterdir())


def test_added_tokens_are_refused_where_they_matter(made: Made, here: Path) -> None:
    given = made(LoraConfig(**LORA))
    tokenizer = TOKENIZERS["qwen2"]()
    tokenizer.add_special_tokens({"pad_token": "<|PAD|>"})
    tokenizer.save_pretrained(given)
    assert "beside it: the same tokens as the base's" in look_at(str(given)).text()
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(given)
    seen = look_at(str(given))
    assert "a token that the base's has not" in seen.words.refusal
    assert "'<think>'" in seen.words.refusal
    with pytest.raises(ModelError, match="put the tokenizer files of"):
        imported(given)


def test_another_end_of_text_is_told_of(made: Made, base: Path, here: Path) -> None:
    given = made(LoraConfig(**LORA))
    byte_tokenizer(IM, eos="<|endoftext|>", template=CHATML).save_pretrained(given)
    assert "ends texts with '<|endoftext|>', the base's with '<|im_end|>'" in look_at(str(given)).text()
    byte_tokenizer(IM, eos="<|im_end|>", template=None).save_pretrained(given)
    (given / "chat_template.jinja").unlink()
    assert "brings no chat template, so chats are asked with the base's" in look_at(str(given)).text()
