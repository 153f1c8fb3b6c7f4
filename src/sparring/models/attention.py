"""Attention over packed rows, as an implementation that transformers' models can be told to use.

`model.set_attn_implementation(NAME)` makes every attention layer call `attend`. With an `unpacking` among
the model's keyword arguments the layer attends inside each `[prompt | answer]` of a packed row; without
one it does what PyTorch's own scaled dot product attention does, mask and all, as while decoding.
No mask of the size of the packed row is ever made.

Shapes: T packed tokens, R rows of a bucket, L their longest, A queries of a row, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sparring.data.packing import Bucket, Unpacking

NAME = "sparring"

# Keyword arguments that change what attention computes and that are not understood here.
FOREIGN = ("s_aux", "position_bias", "cache")


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    unpacking: Unpacking | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: query [B, H, T, D], key and value [B, fewer H, T, D] → [B, T, H, D].

    Raises ValueError for a kind of attention that packed rows cannot have.
    """
    if unpacking is None:
        if softcap is not None:
            return _plain_capped(query, key, value, attention_mask, scaling, softcap), None
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return found
    foreign = [name for name in FOREIGN if others.get(name) is not None]
    if foreign or dropout or query.shape[0] != 1:
        raise ValueError(f"packed rows have no {', '.join(foreign) or 'dropout'}")
    unpacking.windows.add(sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if unpacking.flash:
        if softcap is not None:
            raise ValueError("flash attention has no soft cap")
        return flash(query, key, value, unpacking, scale, sliding_window).unsqueeze(0), None
    heads = query.shape[1]
    # tokens first: gathering then moves whole tokens
    query_TW, key_TW, value_TW = (x[0].transpose(0, 1).flatten(1) for x in (query, key, value))
    parts = []
    for bucket in unpacking.buckets:
        asked = bucket.keys_RL if bucket.queries_RA is None else bucket.queries_RA
        q_RHAD = _rows(query_TW, asked, query.shape[1])
        k_RHLD = _rows(key_TW, bucket.keys_RL, key.shape[1])
        v_RHLD = _rows(value_TW, bucket.keys_RL, value.shape[1])
        out_RHAD = _attention(q_RHAD, k_RHLD, v_RHLD, bucket, scale, sliding_window, softcap)
        parts.append(out_RHAD.transpose(1, 2).flatten(2).flatten(0, 1))
    out_TW = F.embedding(unpacking.back_T, parts[0] if len(parts) == 1 else torch.cat(parts))
    return out_TW.view(1, len(out_TW), heads, -1), None


def _rows(x_TW: Tensor, index_RL: Tensor, heads: int) -> Tensor:
    """Gather tokens into rows, [R, H, L, D]. An embedding's backward adds up faster than an index's."""
    return F.embedding(index_RL, x_TW).view(*index_RL.shape, heads, -1).transpose(1, 2)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, bucket: Bucket, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    if softcap is not None:
        mask = bucket.mask(window)
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        return _capped(q, k, v, mask, scale, softcap)
    mask = bucket.mask(window, q.dtype)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    k, v = (_repeated(x, q.shape[1]) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _repeated(x: Tensor, heads: int) -> Tensor:
    """Keys or values for every query head."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, cap: float) -> Tensor:
    """Attention whose scores are soft-capped (Gemma 2): cap·tanh(score / cap), softmax in fp32."""
    k, v = (_repeated(x, q.shape[1]) for x in (k, v))
    scores = cap * torch.tanh(q @ k.transpose(-1, -2) * scale / cap)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


def _plain_capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:
    """`_capped` outside packed rows, under the mask that transformers made, or causally; [B, T, H, D]."""
    if mask is None:
        queries, keys = q.shape[2], k.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    return _capped(q, k, v, mask, scale, softcap).transpose(1, 2)


def flash(query: Tensor, key: Tensor, value: Tensor, unpacking: Unpacking, scale: float, window: int | None) -> Tensor:
    """One call of flash attention for sequences of varying length; [T, H, D].

    A row's keys are `[prompt | answer]` while only its own queries ask: flash aligns causality at the end of both.
    """
    from torch.nn.attention.varlen import varlen_attn

    q_THD = query[0].transpose(0, 1)
    k_NHD, v_NHD = (_repeated(x, query.shape[1])[0].transpose(0, 1)[unpacking.keys] for x in (key, value))
    seen = (-1 if window is None else window - 1, 0)
    found = varlen_attn(
        q_THD, k_NHD, v_NHD, unpacking.starts_q, unpacking.starts_k, unpacking.most_q, unpacking.most_k,
        scale=scale, window_size=seen,
    )  # fmt: skip
    return found if isinstance(found, Tensor) else found[0]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
