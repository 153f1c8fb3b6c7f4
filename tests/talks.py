"""Small runs to talk to, on a base with a chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparring.configfile import build_config
from sparring.job import run_job
from tests.helpers import CHATML, byte_tokenizer, save_base


def save_talker(place: Path) -> None:
    """The base of `run_on`."""
    save_base(place / "base", "llama", byte_tokenizer(template=CHATML, special=("<|endoftext|>",)))


def sums(ending: str = "") -> list[dict[str, Any]]:
    """24 chats of one question each."""
    asked = [(f"{a} and {b}", f"{a + b}{ending}") for a in range(4) for b in range(6)]
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in asked
    ]


def run_on(place: Path, name: str, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """A run of rows in place/runs. more: sections of its config."""
    (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": name, "runs": str(place / "runs"), "threads": 1, "method": {"r": 4}, "evaluation": {"show": 1},
        "model": {"base": str(place / "base"), "dtype": "fp32", "device": "cpu"},
        "data": {"train": str(place / f"{name}.jsonl"), "eval_size": 6}, **more,
    }  # fmt: skip
    run_job(build_config(tree, []), [])
