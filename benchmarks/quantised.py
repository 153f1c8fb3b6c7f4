"""What quantised weights cost in time and save in memory: a random Llama of about 100 M, all forms in one process.

    .venv/bin/python -m benchmarks.quantised [--layers 12] [--width 768] [--tokens 256] [--repeat 3] [--threads 2]

Each form is held alone, made from the same folder in a temporary place. Best of `repeat`, after one pass that is not
timed; forward and step over one row of `tokens`, decoding of one token behind a cache of about 64.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from sparring.config import ModelConfig
from sparring.methods.lora import LoRA
from sparring.models.base import Base, load_base, load_renderer
from sparring.models.players import Player, Ring
from sparring.models.quantised import weight_bytes
from sparring.models.scoring import answer_logprobs

FORMS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "int8": {"quantise": "int8"},
    "NF4": {"quantise": "nf4", "double_quant": False},
    "NF4 (double)": {"quantise": "nf4"},
}
CACHED = 64


def make(folder: Path, layers: int, width: int, vocabulary: int) -> None:
    """A random Llama and a tokenizer of as many words as it needs."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers, num_attention_heads=width // 64,
        vocab_size=vocabulary, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="w1", eos_token="w2").save_pretrained(folder)


def best(what: Callable[[], Any], repeat: int) -> float:
    """Milliseconds of the fastest of some calls, after one more."""
    what()
    times = []
    for _ in range(repeat):
        begun = time.perf_counter()
        what()
        times.append(time.perf_counter() - begun)
    return 1000 * min(times)


def measure(base: Base, tokens: int, repeat: int) -> dict[str, float]:
    """Forward, one decoded token, one training step in milliseconds, and MiB of weights."""
    size = weight_bytes(base.model) / 2**20
    ids = [3 + i % 97 for i in range(tokens)]
    rows = [(ids[: tokens // 2], ids[tokens // 2 :])]

    def forward() -> None:
        with torch.no_grad():
            answer_logprobs(base.model, base, rows)

    @torch.no_grad()
    def decode() -> None:
        base.model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)

    with torch.no_grad():
        cache = base.model(input_ids=torch.tensor([ids[:1] * CACHED]), use_cache=True).past_key_values
    found = {"forward": best(forward, repeat), "one token": best(decode, repeat)}
    ring = Ring(base, LoRA(), "base")
    model = ring.challenge(Player.untrained(base), seed=0)

    def step() -> None:
        torch.autograd.backward(-answer_logprobs(model, base, rows).logprob_A.sum())
        model.zero_grad()

    return {**found, "train step": best(step, repeat), "weights": size}


def table(rows: dict[str, dict[str, float]]) -> list[str]:
    """Milliseconds, and in brackets how many times as long as the first form took."""
    lines = [f"{'base':14s}{'forward ms':>18s}{'one token ms':>18s}{'train step ms':>18s}{'weights MiB':>18s}"]
    first = next(iter(rows.values()))
    for name, row in rows.items():
        cells = [f"{row[key]:10.1f} ({row[key] / first[key]:.2f})" for key in row]
        lines.append(f"{name:14s}" + "".join(f"{cell:>18s}" for cell in cells))
    return lines


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure all forms and print the table; returns it."""
    parser = argparse.ArgumentParser(prog="benchmarks.quantised")
    sizes = {"layers": 12, "width": 768, "vocabulary": 8000, "tokens": 256, "repeat": 3, "threads": 2}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    transformers_logging.disable_progress_bar()
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        make(Path(place), asked.layers, asked.width, asked.vocabulary)
        for name, form in FORMS.items():
            config = ModelConfig(base=place, dtype="fp32", device="cpu", **form)
            base = load_base(Path(place), config, load_renderer(Path(place), config))
            rows[name] = measure(base, asked.tokens, asked.repeat)
            del base
            gc.collect()
    print(json.dumps(rows) if asked.json else "\n".join(table(rows)))
    return rows


if __name__ == "__main__":
    main()
