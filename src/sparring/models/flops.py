"""Floating-point operations of a pass, counted from the sizes of the matrices (2 per multiply-add)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, slots=True)
class Flops:
    """Sizes of a model: weights of frozen and of trained matrices, of the head, and of attention."""

    frozen: int
    trained: int
    head: int
    attention: int

    @staticmethod
    def of(model: Any) -> Flops:
        """Count the linear layers of a model, adapters included."""
        head = model.get_output_embeddings()
        frozen = trained = 0
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D) and module is not head:
                if module.weight.requires_grad:
                    trained += module.weight.numel()
                else:
                    frozen += module.weight.numel()
        text = model.config.get_text_config()
        width = text.num_attention_heads * (
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        )
        return Flops(frozen, trained, head.weight.numel(), text.num_hidden_layers * width)

    def forward(self, lengths: Sequence[int], scored: int, tokens: int | None = None) -> int:
        """A forward pass over rows `[prompt | answer]` of these lengths with the head at `scored` positions.

        tokens  how many the linear layers compute, where prompts are shared; default: all of the rows'
        """
        tokens = sum(lengths) if tokens is None else tokens
        pairs = sum(length * length for length in lengths)
        return 2 * (self.frozen + self.trained) * tokens + 2 * self.head * scored + 4 * self.attention * pairs

    def training(self, lengths: Sequence[int], scored: int, tokens: int | None = None) -> int:
        """Forward and backward: a frozen matrix gives no weight gradient, so it costs 4, not 6, per token."""
        tokens = sum(lengths) if tokens is None else tokens
        pairs = sum(length * length for length in lengths)
        linear = 4 * self.frozen * tokens + 6 * self.trained * tokens
        return linear + 4 * self.head * scored + 12 * self.attention * pairs

    def decoding(self, prompts: Sequence[int], answers: Sequence[int]) -> int:
        """Prefill and one pass per sampled token with a cache."""
        tokens = sum(prompts) + sum(answers)
        pairs = sum(p * p + a * p + a * a // 2 for p, a in zip(prompts, answers, strict=True))
        return 2 * (self.frozen + self.trained) * tokens + 2 * self.head * sum(answers) + 4 * self.attention * pairs
