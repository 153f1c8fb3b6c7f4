"""From logits to the log-probabilities of given tokens, in fp32.

Shapes: B rows, A positions, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def token_logprobs(logits_BAV: Tensor, targets_BA: Tensor) -> Tensor:
    """log softmax(logits)[target] per position, shape [B, A], in nats, accumulated in fp32."""
    flat = F.cross_entropy(logits_BAV.flatten(0, 1).float(), targets_BA.flatten(), reduction="none")
    return -flat.view(targets_BA.shape)
