"""Adapters for the tests of imports: made by bare PEFT on a tiny base, and imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from sparring.errors import InputError
from sparring.importing.adapter import import_adapter, look_at
from tests.helpers import save_base
from tests.parity.test_architectures import TOKENIZERS

Made = Callable[..., Path]
ROWS = [{"prompt": f"{a} and {b}:", "completion": f" {a + b}"} for a in range(3) for b in range(4)]
CHATS = [{"question": f"How many is {a} and {b}?", "answer": f"It is {a + b}."} for a in range(3) for b in range(4)]
LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
FAST = ["model.dtype=fp32", "model.device=cpu", "threads=1", "evaluation.show=1", "generation.max_new_tokens=4"]


def save_qwen(folder: Path) -> Path:
    """A tiny Qwen2 with a ChatML template."""
    return save_base(folder, "qwen2", TOKENIZERS["qwen2"]())


def write_rows(folder: Path) -> None:
    """rows.jsonl and chats.jsonl."""
    for name, rows in (("rows", ROWS), ("chats", CHATS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def moved(model: Any) -> Any:
    """The model with all that trains far from where it began."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_adapter(base: Path, config: Any, folder: Path, **saving: Any) -> Path:
    """An adapter that bare PEFT has made on a base, far from where it began."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    moved(model).save_pretrained(folder, **saving)
    return folder


def said(given: Any, **more: Any) -> str:
    """The one sentence with which an adapter is refused by a look."""
    with pytest.raises(InputError) as refused:
        look_at(str(given), **more)
    text = str(refused.value)
    assert "\n" not in text
    return text


def imported(given: Path, data: str = "rows.jsonl", **more: Any) -> tuple[Path, Any, Any]:
    return import_adapter(str(given), data, overrides=[*FAST, *more.pop("overrides", [])], **more)
