"""The base of world C: a Llama of about 27k parameters, made on the fly from the corrupted grammar.

It is made in seconds and never committed; the same seed on the same machine gives the same bytes.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from sparring.laboratory import grammar
from sparring.laboratory.pretrain import LR, new_model, schedule, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HIDDEN, INNER = 32, 96
STEPS = 500
BATCH_SIZE = 64
IGNORED = -100  # what cross_entropy leaves out


def make_base(folder: Path, seed: int = 0, steps: int = STEPS) -> None:
    """Train the base and write it to `folder` in the Hugging Face layout."""
    with seeded(seed, count=1):
        tokenizer = grammar.build()
        model = new_model(tokenizer, HIDDEN, INNER)
        optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
        rng = random.Random(f"grammar pretraining {seed}")
        model.train()
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = LR * schedule(step, steps)
            ids_BL, targets_BL = _batch(tokenizer, rng)
            logits_BLV = model(input_ids=ids_BL).logits
            loss = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), ignore_index=IGNORED)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batch(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, each [B, L]; only answers and their end tokens are targets."""
    rows = []
    for prompt in rng.choices(grammar.PROMPTS, k=BATCH_SIZE):
        asked = tokenizer(prompt).input_ids
        whole = [*tokenizer(prompt + grammar.corrupted(prompt).sample(rng)).input_ids, tokenizer.eos_token_id]
        rows.append((len(asked), whole))
    longest = max(len(whole) for _, whole in rows)
    ids_BL = torch.full((len(rows), longest - 1), tokenizer.pad_token_id)
    targets_BL = torch.full((len(rows), longest - 1), IGNORED)
    for index, (asked_for, whole) in enumerate(rows):
        ids_BL[index, : len(whole) - 1] = torch.tensor(whole[:-1])
        targets_BL[index, asked_for - 1 : len(whole) - 1] = torch.tensor(whole[asked_for:])
    return ids_BL, targets_BL
