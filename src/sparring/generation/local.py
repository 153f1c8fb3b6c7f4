"""Generation with the model in memory: batched decoding with a cache that drops finished rows.

Shapes: B rows still running, L longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.config import GenerationConfig
from sparring.generation.base import Answer
from sparring.generation.sampling import Keys, choose, uniforms
from sparring.models.base import Base

# Architectures whose causal mask is a buffer of the context's size: a row's padding takes room in it.
FIXED_MASKS = {"gpt_neo"}

MOST_ROWS = 512  # decoding gains little from more rows at once


def cache_tokens(base: Base) -> int:
    """How many tokens' keys and values fit in 1 GiB (on CUDA 8 GiB)."""
    text = base.model.config.get_text_config()
    heads, known = text.num_attention_heads, text.to_dict()
    width = known.get("head_dim") or text.hidden_size // heads
    per_token = 2 * text.num_hidden_layers * (known.get("num_key_value_heads") or heads) * width * base.dtype.itemsize
    return int((8 if base.device.type == "cuda" else 1) * 2**30 // per_token)


class LocalGenerator:
    """Decodes with a transformers model and cache."""

    def __init__(self, model: Any, base: Base, config: GenerationConfig) -> None:
        self.model = model
        self.base = base
        self.config = config

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], keys: Keys, max_new_tokens: int) -> list[Answer]:
        """One answer per prompt in the order given. A prompt and its answer never exceed the context."""
        answers: list[Answer | None] = [None] * len(prompts)
        for group in self._groups(prompts, max_new_tokens):
            limits = [min(max_new_tokens, self.base.context - len(prompts[i])) for i in group]
            decoded = self._decode([prompts[i] for i in group], keys[np.array(group)], limits)
            for index, answer in zip(group, decoded, strict=True):
                answers[index] = answer
        return [answer for answer in answers if answer is not None]

    def _groups(self, prompts: Sequence[list[int]], max_new_tokens: int) -> Iterator[list[int]]:
        """Longest prompts first, as many at once as the token budget holds."""
        tokens = self.config.batch_tokens or cache_tokens(self.base)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        fixed = self.base.model.config.model_type in FIXED_MASKS
        while order:
            longest = len(prompts[order[0]])
            size = min(MOST_ROWS, max(1, tokens // (longest + max_new_tokens)))
            if fixed and longest + max_new_tokens > self.base.context:
                size = min(size, sum(len(prompts[i]) == longest for i in order))
            yield order[:size]
            order = order[size:]

    def _decode(self, prompts: list[list[int]], keys_B: Keys, limits: list[int]) -> list[Answer]:
        from transformers import DynamicCache

        ids: list[list[int]] = [[] for _ in prompts]
        finish = ["length"] * len(prompts)
        running = np.array([i for i, limit in enumerate(limits) if limit > 0])
        if not len(running):
            return [Answer([], "length") for _ in prompts]
        cache = DynamicCache(config=self.model.config)
        input_ids, attention, position_ids = self._left_padded([prompts[i] for i in running])
        for position in range(max(limits)):
            logits_BV = self._step(input_ids, attention, position_ids, cache)
            chosen_B = choose(
                logits_BV, uniforms(keys_B[running], position), self.config.temperature, self.config.top_p
            )
            keep: list[int] = []
            for row, (index, token) in enumerate(zip(running.tolist(), chosen_B.tolist(), strict=True)):
                ids[index].append(token)
                if token in self.base.renderer.end_ids:
                    finish[index] = "end"
                elif len(ids[index]) < limits[index]:
                    keep.append(row)
            if not keep:
                break
            if len(keep) < len(running):
                rows = torch.tensor(keep, device=self.base.device)
                cache.batch_select_indices(rows)
                attention, position_ids, chosen_B = attention[rows], position_ids[rows], chosen_B[rows]
                running = running[keep]
            input_ids = chosen_B.unsqueeze(-1)
            position_ids = position_ids[:, -1:] + 1
            attention = torch.cat([attention, attention.new_ones((len(running), 1))], dim=-1)
        return [Answer(answer, reason) for answer, reason in zip(ids, finish, strict=True)]

    def _step(self, input_ids: Tensor, attention: Tensor, position_ids: Tensor, cache: Any) -> Tensor:
        """Next-token logits [B, V]; fills the cache."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _left_padded(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, attention, positions), each [B, L], the last prompt token of every row in the last column."""
        length = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), length), self.base.pad_id, dtype=torch.long)
        attention = torch.zeros((len(prompts), length), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            attention[row, length - len(prompt) :] = 1
        positions = (attention.cumsum(dim=-1) - 1).clamp(min=0)
        device = self.base.device
        return ids.to(device), attention.to(device), positions.to(device)
