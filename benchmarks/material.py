"""What all contestants work on: a random model in a known shape, the player to start from, and the pairs.

Made once by the `prepare` child and saved; the weights are rounded to bf16, so that they are the same in both types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from benchmarks.settings import Settings
from sparring.config import ModelConfig
from sparring.data.pairs import Played, Rows, write_rows
from sparring.methods.lora import LoRA
from sparring.models.base import load_base, load_renderer
from sparring.models.players import Player, Ring
from sparring.models.quantised import count_parameters

PAD, BOS, END = 0, 1, 2


def shape_of(name: str) -> Any:
    """The transformers config of a model: tiny ones for quick looks, 135m as SmolLM2, 0.5b as Qwen2.5."""
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": END}
    if name == "135m":
        return LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, **ids,
        )  # fmt: skip
    sizes = {  # vocabulary, hidden, intermediate, layers, heads, heads of keys and values, tied
        "micro": (512, 64, 128, 2, 4, 2, False),
        "tiny": (32000, 512, 1408, 6, 8, 8, False),
        "0.5b": (151936, 896, 4864, 24, 14, 2, True),
    }
    vocabulary, hidden, intermediate, layers, heads, groups, tied = sizes[name]
    return Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, max_position_embeddings=32768,
        tie_word_embeddings=tied, **ids,
    )  # fmt: skip


def prepare(folder: Path, settings: Settings) -> dict[str, Any]:
    """Write model, start and pairs to the folder of the benchmark."""
    torch.manual_seed(settings.seed)
    model = AutoModelForCausalLM.from_config(shape_of(settings.model)).to(torch.bfloat16)
    model.save_pretrained(folder / "model")
    _tokenizer().save_pretrained(folder / "model")
    del model
    base = load_base(folder / "model", ModelConfig(), load_renderer(folder / "model", ModelConfig()))
    ring = Ring(base, LoRA(), "model")
    untrained = Player.untrained(base)
    ring.challenge(untrained, settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    adapted = sum(weight.numel() for weight in ring.trainable().values())
    with torch.no_grad():
        for name, weight in ring.trainable().items():
            if "lora_B" in name:  # a player that has learnt something: its adapter is not zero
                weight.copy_(0.01 * torch.randn(weight.shape, generator=generator))
    (folder / "start").mkdir()
    ring.save(folder / "start", untrained, folder, "start")
    write_rows(folder / "played.arrow", random_rows(settings, base.vocabulary), Played)
    return {"device": base.device.type, "parameters": count_parameters(base.model) - adapted}


def _tokenizer() -> PreTrainedTokenizerFast:
    """A stand-in: the contestants get token ids, and need no more than the special ones."""
    from tokenizers import Tokenizer, models

    core = Tokenizer(models.WordLevel({"<pad>": PAD, "<s>": BOS, "</s>": END, "<unk>": 3}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def random_rows(settings: Settings, vocabulary: int) -> list[Played]:
    """Prompts and answers of random ids; every answer closes with the end token."""
    generator = torch.Generator().manual_seed(settings.seed)

    def ids(mean: int, end: bool) -> list[int]:
        z = torch.randn((), generator=generator).item()
        spread = settings.spread
        length = round(mean * min(4.0, math.exp(spread * z - spread * spread / 2)))  # the mean stays the mean
        drawn: list[int] = torch.randint(4, vocabulary, (max(1, length),), generator=generator).tolist()
        return [*drawn[:-1], END] if end else drawn

    prompt, real, synthetic = settings.lengths
    return [
        Played(
            key, ids(prompt, False), ids(real, True), [ids(synthetic, True) for _ in range(settings.samples)],
            ["end"] * settings.samples, [0.0] * settings.samples,
        )
        for key in range(settings.pairs)
    ]  # fmt: skip


# ---------------------------------------------------------------- for the contestants


def rows_in_order(folder: Path, settings: Settings, grouped: bool) -> list[Played]:
    """The pairs as the optimiser steps take them: in random order, or grouped by length as transformers does it.

    Grouping sorts stretches of that order, longest first: of 50 steps, as in a large data set, where transformers
    takes shorter stretches of small ones and pads more. With equal lengths the order stays.
    """
    rows: list[Played] = Rows([folder / "played.arrow"], Played)[:]
    generator = torch.Generator().manual_seed(settings.seed)
    rows = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
    if not grouped:
        return rows
    stretch = settings.step * 50
    parts = [rows[start : start + stretch] for start in range(0, len(rows), stretch)]
    return [row for part in parts for row in sorted(part, key=lambda row: -_longest(row))]


def _longest(row: Played) -> int:
    return len(row.prompt_ids) + max(len(ids) for ids in (row.real_ids, *row.synthetic_ids))


def pair_tokens(rows: Sequence[Played]) -> int:
    """Useful tokens: those of prompts and answers, each once."""
    return sum(len(row.prompt_ids) + len(row.real_ids) + sum(map(len, row.synthetic_ids)) for row in rows)


def own_memory(model: Any) -> None:
    """Copy weights that are mapped from the file into memory, so that they are resident before anything is timed."""
    for weight in model.parameters():
        weight.data = weight.data.clone()


def padded_left(prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """(ids, attention mask) of prompts [B, L], padded on the left."""
    width = max(map(len, prompts))
    ids = [[PAD] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)
