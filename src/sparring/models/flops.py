"""Floating-point operations of a pass, counted from the sizes of the matrices (2 per multiply-add).

Attention counts whole squares, the masked half included, as profilers do. tests/parity/test_flops.py holds the counts
against those of torch.utils.flop_counter. Two things are left out, which are small in models of many layers: what the
first layer spares where an adapter stands only behind its attention or its feed-forward part, and DoRA's norms, which
cost a product of its matrices in every pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparring.models.virtual import no_gradients, virtual_tokens

# What the embedding feeds in the first layer, by the names that architectures give it (GPT-NeoX feeds its MLP too).
_FIRST = re.compile(r"\b(layers|h)\.0\..*\b(q_proj|k_proj|v_proj|qkv_proj|query_key_value|c_attn|dense_h_to_4h)\b")


@dataclass(frozen=True, slots=True)
class Flops:
    """Sizes of a model: weights of frozen and of trained matrices, of the head, and of attention.

    first    weights fed by the frozen embedding: nothing needs the gradient of their input
    virtual  tokens before every prompt, which lengths do not count
    queries  width of attention whose queries need no gradient
    again    passes of the head in training: its logits and the gradient behind them at once (models/head.py); where
             it has an adapter its logits are made again, and where it trains itself its gradient is one more
    """

    frozen: int
    trained: int
    head: int
    attention: int
    first: int = 0
    virtual: int = 0
    queries: int = 0
    again: int = 2

    @staticmethod
    def of(model: Any) -> Flops:
        """Count the linear layers of a model, adapters included."""
        head = model.get_output_embeddings()
        frozen = trained = first = 0
        inside = {id(module) for module in head.modules()}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | Conv1D) and id(module) not in inside:
                linear = isinstance(module, nn.Linear)  # whose weight may be packed in 4 bits
                size = module.in_features * module.out_features if linear else module.weight.numel()
                if module.weight.requires_grad:
                    trained += size
                else:
                    frozen += size
                if _FIRST.search(name) and "lora_B" not in name:
                    first += size
        text = model.config.get_text_config()
        width = text.num_attention_heads * (
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        )
        inputs, asked = no_gradients(model)
        trains = model.get_input_embeddings().weight.requires_grad
        first, queries = first if inputs and not trains else 0, width if asked else 0
        attention, virtual = text.num_hidden_layers * width, virtual_tokens(model)
        plain = type(head) is nn.Linear and not head.weight.requires_grad
        again = 2 if plain else 4 if head.weight.requires_grad else 3
        beside = [part for part in head.modules() if isinstance(part, nn.Linear) and part is not head]
        size = head.weight.numel()
        if isinstance(head, BaseTunerLayer):  # with an adapter's matrices beside its own
            size = sum(part.weight.numel() for part in beside)
        return Flops(frozen, trained, size, attention, first, virtual, queries, again)

    def forward(self, lengths: Sequence[int], scored: int, tokens: int | None = None) -> int:
        """A forward pass over rows `[prompt | answer]` of these lengths with the head at `scored` positions.

        tokens  how many the linear layers compute, virtual ones too, where prompts are shared; default: all of them
        """
        lengths = [length + self.virtual for length in lengths]
        tokens = sum(lengths) if tokens is None else tokens
        pairs = sum(length * length for length in lengths)
        return 2 * (self.frozen + self.trained) * tokens + 2 * self.head * scored + 4 * self.attention * pairs

    def training(
        self, lengths: Sequence[int], scored: int, tokens: int | None = None, checkpointing: bool = False
    ) -> int:
        """Forward and backward: a frozen matrix gives no weight gradient, so it costs 4, not 6, per token.

        checkpointing  layers are computed again in the backward pass
        """
        lengths = [length + self.virtual for length in lengths]
        tokens = sum(lengths) if tokens is None else tokens
        pairs = sum(length * length for length in lengths)
        # with it, transformers lets the embedding's output need a gradient
        first, queries = (0, 0) if checkpointing else (self.first, self.queries)
        linear = (4 * self.frozen + 6 * self.trained - 2 * first) * tokens
        again = (2 * (self.frozen + self.trained) * tokens + 4 * self.attention * pairs) if checkpointing else 0
        return linear + again + 2 * self.again * self.head * scored + (12 * self.attention - 2 * queries) * pairs

    def decoding(self, prompts: Sequence[int], answers: Sequence[int]) -> int:
        """Prefill and, with a cache, one pass per sampled token but the last, which nothing follows."""
        prompts = [length + self.virtual for length in prompts]
        tokens = sum(prompts) + sum(answers) - len(answers)
        pairs = sum(p * p + (a - 1) * p + a * (a - 1) // 2 for p, a in zip(prompts, answers, strict=True))
        return 2 * (self.frozen + self.trained) * tokens + 2 * self.head * sum(answers) + 4 * self.attention * pairs
