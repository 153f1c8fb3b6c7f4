"""Finding out how a model can be called: by numbers on two short pairs, not by its name.

Packed rows fail silently where an architecture does not take part: a mask is built all the same, positions
start anew, a window is forgotten, a state runs on from one answer into the next. So every form is tried on
the loaded model and compared with plain forward passes of whole sequences.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparring.data.collate import Row, collate
from sparring.errors import ModelError
from sparring.models.attention import NAME
from sparring.models.forward import Layout, token_logprobs

# How far log-probs may be from those of a plain forward pass, in nats per token (root mean square), beyond twice
# what another attention kernel makes of the plain pass: in bf16 that is a tenth of a nat where logits are large.
NEAR = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}

WINDOWED = 2048  # a window up to this length is tried with prompts that are longer
KINDS = {"full_attention", "sliding_attention"}  # layers whose attention is a matter of positions alone
CHOOSING = ("keep_window_size", "index_topk")  # settings of attention that chooses what to look at in long texts
ERRORS = (TypeError, ValueError, LookupError, RuntimeError, AttributeError, AssertionError, ImportError)


def choose_layout(model: Any, vocabulary: int) -> Layout:
    """The fastest way of calling the model that gives a plain forward pass's numbers.

    Leaves the model's attention set for that way. The model must be frozen and in eval mode.
    """
    device, native = model.get_input_embeddings().weight.device, model.config._attn_implementation
    rows = _pairs(vocabulary, _window(model))
    try:
        plain_N = _plain(model, rows)
    except ERRORS as error:
        raise ModelError(f"this base cannot be called with token ids alone ({_short(error)}); give another") from error
    noise = _noise(model, rows, plain_N, native)
    wrong = _difference(model, rows, plain_N, Layout(direct=True), noise)
    why = _foreign_layers(model) or wrong
    if not why:
        flash = [True, False] if device.type == "cuda" and model.dtype != torch.float32 else [False]
        _use(model, NAME)
        for layout in [Layout(packed=True, flash=use, direct=True) for use in flash]:
            why = _difference(model, rows, plain_N, layout, noise)
            if not why:
                return layout
        _use(model, native)
    own = _difference(model, rows, plain_N, Layout(), noise) if wrong else ""
    if own:
        raise ModelError(f"this base does not give an answer's log-probs in a padded row: {own}; give a causal model")
    return Layout(direct=not wrong, why=why)


def _pairs(vocabulary: int, window: int | None) -> list[Row]:
    """Two short pairs: prompts of different lengths, answers of several tokens and of one."""
    draw = random.Random(0)
    longer = 0 if window is None or window > WINDOWED else window

    def ids(count: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(count)]

    first, second = ids(9 + longer), ids(5)
    return [(first, ids(6)), (first, ids(3)), (second, ids(1)), (second, ids(4)), (second, ids(7))]


def _window(model: Any) -> int | None:
    """The sliding window that the config states, if any layer has it."""
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    unused = kinds is not None and "sliding_attention" not in kinds
    return None if unused else getattr(text, "sliding_window", None) or None


def _foreign_layers(model: Any) -> str:
    """What the config states and short pairs may not show: layers that are not attention by position, choosing ones."""
    text = model.config.get_text_config()
    kinds = {*(getattr(text, "layer_types", None) or ())} - KINDS
    kinds |= {name for name in CHOOSING if getattr(text, name, None)}
    return f"it has layers of another kind ({', '.join(sorted(kinds))})" if kinds else ""


def _use(model: Any, implementation: str) -> None:
    """Set the model's attention; a model that has its own stays as it is, which the numbers will show."""
    with _silence():
        model.set_attn_implementation(implementation)


@torch.no_grad()
def _plain(model: Any, rows: list[Row]) -> Tensor:
    """log p of every answer token by a forward pass of each whole sequence, as transformers makes it."""
    device = model.get_input_embeddings().weight.device
    found = []
    for prompt, answer in rows:
        ids = torch.tensor([prompt + answer], device=device)
        at = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1, device=device)
        logits_AV = model(input_ids=ids, use_cache=False).logits[0, at].float()
        found.append(logits_AV.log_softmax(dim=-1).gather(-1, ids[0, at + 1].unsqueeze(-1)).squeeze(-1))
    return torch.cat(found)


@torch.no_grad()
def _difference(model: Any, rows: list[Row], plain_N: Tensor, layout: Layout, noise: float) -> str:
    """What is wrong with a way of calling the model, in words; empty if nothing is."""
    device = model.get_input_embeddings().weight.device
    batch = collate(rows, 0, device, layout.packed, layout.flash)
    try:
        got_N = token_logprobs(model, batch, layout)
    except torch.OutOfMemoryError:
        raise
    except ERRORS as error:
        return f"it cannot be called so ({_short(error)})"
    gap = (got_N - plain_N).square().mean().sqrt().item()
    if not gap <= NEAR[model.dtype] + 2 * noise:
        return f"its log-probs would be {gap:.2g} nats per token off"
    window = _window(model)
    if batch.unpacking is not None and window is not None and window not in batch.unpacking.windows:
        return f"its attention layers do not say their window of {window} tokens"
    return ""


def _noise(model: Any, rows: list[Row], plain_N: Tensor, native: str) -> float:
    """How far a plain pass is from one with transformers' eager attention, where the model has it."""
    _use(model, "eager")
    try:
        return (_plain(model, rows) - plain_N).square().mean().sqrt().item()
    except ERRORS:
        return 0.0
    finally:
        _use(model, native)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


@contextmanager
def _silence() -> Iterator[None]:
    """transformers warns when a model's attention cannot be changed; that is found out by numbers here."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
