"""From hidden states to the log-probabilities of given tokens, without the logits of all positions at once.

The head is frozen nearly always, and what comes back to a token's log-prob is one number. So the gradient
for its hidden state, W[y] - Σ_v p(v)·W[v], is formed in the forward pass while a tile of logits is alive, and
only scaled in the backward pass: two matrix products per tile where recomputing takes three (as in TRL's
and Liger's chunked losses), and nothing of size tokens × vocabulary is kept.

Shapes: N answer tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# At most this many fp32 logits at once: 32 MiB, on CUDA 256 MiB.
TILE = {"cpu": 2**23, "cuda": 2**26}


@dataclass(frozen=True, slots=True)
class Head:
    """logits = cap·tanh(scale·(W h + b) / cap) / temperature: an output layer with what comes behind it.

    module       the output layer, perhaps with an adapter
    vocabulary   how many logits it gives
    scale        factor on the logits (Cohere, Granite)
    cap          soft cap (Gemma); None: none
    temperature  the final logits are divided by it; 1 in training, and wherever nothing else is said
    """

    module: Any
    vocabulary: int
    scale: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    @staticmethod
    def of(model: Any) -> Head:
        """The head of a transformers model, as its config describes it."""
        module, text = model.get_output_embeddings(), model.config.get_text_config()
        scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
        cap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
        return Head(module, module.weight.shape[0], scale, cap)

    @property
    def frozen(self) -> bool:
        """Whether it is a plain linear layer that nothing trains."""
        plain = type(self.module) is nn.Linear
        return plain and not any(parameter.requires_grad for parameter in self.module.parameters())

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """All logits of some tokens in fp32, [N, V]. The input is made contiguous: a matrix, never a batch of rows."""
        logits_NV: Tensor = self.module(hidden_ND.contiguous()).float()
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.cap is not None:
            logits_NV = self.cap * torch.tanh(logits_NV / self.cap)
        return logits_NV if self.temperature == 1.0 else logits_NV / self.temperature

    def logprobs(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """log softmax(logits)[target] of every token in nats, fp32, [N]."""
        if self.frozen:
            found: Tensor = _OnePass.apply(hidden_ND, targets_N, self)  # type: ignore[no-untyped-call]
            return found
        parts = []
        for rows in tiles(len(hidden_ND), self.vocabulary, hidden_ND.device):
            tile = (hidden_ND[rows], targets_N[rows])
            if torch.is_grad_enabled():
                parts.append(checkpoint(self._plain, *tile, use_reentrant=False))
            else:
                parts.append(self._plain(*tile))
        return torch.cat(parts)

    def _plain(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Summed up in the same order as `_OnePass` does, so that a trained head begins at the frozen one's numbers."""
        logits_NV = self.logits(hidden_ND)
        most_N = logits_NV.detach().amax(-1)
        chosen_N = logits_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
        return chosen_N - most_N - (logits_NV - most_N.unsqueeze(-1)).exp().sum(-1).log()


def tiles(count: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Slices of tokens whose logits are alive at once; of no tokens, one empty slice."""
    size = max(1, TILE.get(device.type, TILE["cpu"]) // vocabulary)
    for start in range(0, max(1, count), size):
        yield slice(start, min(count, start + size))


class _OnePass(torch.autograd.Function):
    """Log-probs with their gradient for the hidden states formed on the way; the head gets none."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, targets_N: Tensor, head: Head) -> Tensor:
        weight_VD, bias_V = head.module.weight, head.module.bias
        wanted = ctx.needs_input_grad[0]
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        gradient_ND = torch.empty_like(hidden_ND) if wanted else None
        for rows in tiles(len(hidden_ND), head.vocabulary, hidden_ND.device):
            logits_NV = F.linear(hidden_ND[rows].contiguous(), weight_VD, bias_V).float()
            if head.scale != 1.0:
                logits_NV *= head.scale
            if head.cap is not None:
                logits_NV.div_(head.cap).tanh_().mul_(head.cap)
            target_N1 = targets_N[rows].unsqueeze(-1)
            slope_NV = None if head.cap is None or not wanted else 1 - (logits_NV / head.cap).square()
            if head.temperature != 1.0:
                logits_NV /= head.temperature
            chosen_N = logits_NV.gather(-1, target_N1).squeeze(-1)
            most_N = logits_NV.amax(-1)
            sum_N = logits_NV.sub_(most_N.unsqueeze(-1)).exp_().sum(-1)
            logprobs_N[rows] = chosen_N - most_N - sum_N.log()
            if gradient_ND is None:
                continue
            # d log p(y) / d logits = 1[y] - p, in place of p
            factor = head.scale / head.temperature
            slant_NV = logits_NV.mul_((-factor / sum_N).unsqueeze(-1))
            slant_NV.scatter_add_(-1, target_N1, torch.full_like(target_N1, factor, dtype=torch.float32))
            if slope_NV is not None:
                slant_NV *= slope_NV
            torch.mm(slant_NV.to(weight_VD.dtype), weight_VD, out=gradient_ND[rows])
        if gradient_ND is not None:
            ctx.save_for_backward(gradient_ND)
        return logprobs_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return (gradient_ND * upstream[0].unsqueeze(-1)).to(gradient_ND.dtype), None, None


@torch.no_grad()
def surprises(head: Head, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log-prob of the target, entropy, variance of the log-prob) of every token's distribution, each fp32 [N].

    In nats and nats²: a sampled token's log-prob has mean -entropy and this variance.
    """
    found = []
    for rows in tiles(len(hidden_ND), head.vocabulary, hidden_ND.device):
        logp_NV = torch.log_softmax(head.logits(hidden_ND[rows]), dim=-1)
        p_NV = logp_NV.exp()
        logp_NV.clamp_(min=-1e4)  # 0 · log 0 = 0
        entropy_N = -(p_NV * logp_NV).sum(-1)
        second_N = (p_NV * logp_NV.square()).sum(-1)
        chosen_N = logp_NV.gather(-1, targets_N[rows].unsqueeze(-1)).squeeze(-1)
        found.append((chosen_N, entropy_N, second_N - entropy_N.square()))
    logprob_N, entropy_N, variance_N = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logprob_N, entropy_N, variance_N


@torch.no_grad()
def confidences(head: Head, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """(probability of the likeliest token, whether it is the target), fp32 [N] and bool [N]."""
    found = []
    for rows in tiles(len(hidden_ND), head.vocabulary, hidden_ND.device):
        logits_NV = head.logits(hidden_ND[rows])
        most_N, best_N = logits_NV.max(dim=-1)
        found.append(((most_N - logits_NV.logsumexp(-1)).exp(), best_N == targets_N[rows]))
    confidence_N, right_N = (torch.cat(parts) for parts in zip(*found, strict=True))
    return confidence_N, right_N
