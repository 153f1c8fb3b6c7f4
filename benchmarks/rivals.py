"""The usual pipeline: transformers' `generate`, then TRL's DPOTrainer with LoRA.

A  as it comes: the adapter attached, batches in the order of the data; TRL's defaults, which are gradient
   checkpointing, the reference computed in every step, fp32 weights.
B  tuned: the adapter merged while generating, prompts sorted by length; no checkpointing, the reference computed
   once, pairs grouped by length, bf16 weights if the type is bf16.
Both get token ids. The reference is a frozen copy of the player's adapter, as self-play needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor

from benchmarks.material import END, PAD, own_memory, padded_left, pair_tokens, rows_in_order
from benchmarks.meter import Meter, warm_up
from benchmarks.settings import Settings
from sparring.data.pairs import Played


def contest(folder: Path, settings: Settings, tuned: bool) -> dict[str, Any]:
    """Do the work as rival A, or B when tuned; the cost, the losses, and the number of useful tokens."""
    if settings.work != "play":
        from benchmarks.dpo import dpo  # here, so that it is in memory before memory is first looked at
    rows = rows_in_order(folder, settings, grouped=tuned)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if tuned and settings.dtype == "bf16" else torch.float32
    plain = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype).to(device)
    own_memory(plain)
    model = PeftModel.from_pretrained(plain, str(folder / "start"), is_trainable=True)
    warm_up(model)
    meter = Meter(device)
    losses: list[float] = []
    tokens = pair_tokens(rows)
    if settings.work != "learn":
        answered = generate(model, rows, settings, tuned, meter)
        tokens = answered if settings.work == "play" else tokens
    if settings.work != "play":
        losses = dpo(model, rows, folder, settings, tuned, meter)
    return {**meter.result(), "losses": losses, "tokens": tokens}


# ---------------------------------------------------------------- play


@final
class EndsAt(LogitsProcessor):
    """Lets row i end at its `lengths_B[i]`-th token and not before; a random model would not end at all."""

    def __init__(self, width: int, lengths_B: Tensor) -> None:
        self.width, self.lengths_B = width, lengths_B

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] with the end token forbidden, or in rows that are due, the only one allowed."""
        scores[:, END] = -torch.inf
        due_B = self.lengths_B == input_ids.shape[1] - self.width + 1
        if due_B.any():
            scores[due_B] = -torch.inf
            scores[due_B, END] = 0.0
        return scores


def generate(model: Any, rows: list[Played], settings: Settings, tuned: bool, meter: Meter) -> int:
    """Answer every prompt by plain sampling; returns the number of tokens in the answers."""
    asked = [(row.prompt_ids, len(ids)) for row in rows for ids in row.synthetic_ids]
    answered = 0
    model.eval()
    with meter.part("play"):
        if tuned:
            model.merge_adapter()
            asked.sort(key=lambda item: -len(item[0]))
        for start in range(0, len(asked), settings.batch):
            batch = asked[start : start + settings.batch]
            answered += _generate(model, batch)
        if tuned:
            model.unmerge_adapter()
    wanted = sum(length for _, length in asked)
    if answered != wanted:
        raise SystemExit(f"generate gave {answered} tokens instead of {wanted}")
    return answered


def _generate(model: Any, batch: list[tuple[list[int], int]]) -> int:
    ids, mask = (part.to(model.device) for part in padded_left([prompt for prompt, _ in batch]))
    lengths_B = torch.tensor([length for _, length in batch], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=int(lengths_B.max()),
            pad_token_id=PAD, eos_token_id=END, bos_token_id=None,
        ),
        logits_processor=[EndsAt(ids.shape[1], lengths_B)],
    )  # fmt: skip
    ended_B = (output[:, ids.shape[1] :] == END).int().argmax(dim=-1)
    return int((ended_B + 1).sum())
