"""From logits to the log-probabilities of given tokens, in fp32.

Shapes: B rows, A positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def token_logprobs(logits_BAV: Tensor, targets_BA: Tensor) -> Tensor:
    """log softmax(logits)[target] per position, shape [B, A], in nats, accumulated in fp32."""
    flat = F.cross_entropy(logits_BAV.flatten(0, 1).float(), targets_BA.flatten(), reduction="none")
    return -flat.view(targets_BA.shape)


def entropies(logits_BAV: Tensor) -> tuple[Tensor, Tensor]:
    """(entropy, variance of the log-prob) of every position's distribution, each [B, A], in nats and nats²."""
    logp_BAV = torch.log_softmax(logits_BAV.float(), dim=-1)
    p_BAV = logp_BAV.exp()
    entropy_BA = -(p_BAV * logp_BAV.clamp(min=-1e4)).sum(dim=-1)
    second_BA = (p_BAV * logp_BAV.clamp(min=-1e4).square()).sum(dim=-1)
    return entropy_BA, second_BA - entropy_BA.square()
