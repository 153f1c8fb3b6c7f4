"""Log-probabilities of answers under the player that is seated: one function for scoring and training.

Shapes: B rows, A positions from the first answer token on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparring.data.collate import Batch, Row, collate, micro_batches
from sparring.models.base import Base
from sparring.models.head import entropies, token_logprobs

# At most this many fp32 logits at once (0.5 GiB), whatever the token budget says.
LOGITS = 2**27


@dataclass(frozen=True, slots=True)
class Scores:
    """What a forward pass says about B answers: sums of token log-probs in nats, and token counts."""

    logprob_B: Tensor
    tokens_B: Tensor


def answer_logprobs(model: Any, base: Base, rows: Sequence[Row]) -> Scores:
    """log p(answer | prompt) of every row, summed over the answer's tokens and over nothing else."""
    batch = collate(rows, base.pad_id, base.device)
    logits_BAV = _logits(model, batch, base)
    logprob_BA = token_logprobs(logits_BAV, batch.targets_BA)
    kept_BA = logprob_BA.masked_fill(~batch.answer_BA, 0.0)
    return Scores(kept_BA.sum(dim=-1), batch.answer_BA.sum(dim=-1))


def _logits(model: Any, batch: Batch, base: Base) -> Tensor:
    """Logits [B, A, V] that predict the batch's `targets_BA`.

    No mask is given: padding stands on the right, where causal attention never looks, and without a
    mask the attention kernels are faster (1.3 to 1.7 times on a CPU). Positions count from 0, as by default.
    """
    logits: Tensor = model(
        input_ids=batch.input_ids_BL,
        logits_to_keep=torch.arange(batch.first, batch.input_ids_BL.shape[1] - 1, device=base.device),
        use_cache=False,
    ).logits
    return logits


def split_rows(indices: Sequence[int], rows_of: Sequence[Sequence[Row]], base: Base, tokens: int) -> list[list[int]]:
    """Micro-batches of items within the token budget and the logits budget."""
    return micro_batches(indices, rows_of, tokens, LOGITS, base.vocabulary)


@torch.no_grad()
def score(model: Any, base: Base, rows: Sequence[Row], tokens: int) -> list[float]:
    """Summed log-prob of each row's answer in nats, in the order given, under the seated player."""
    result = [0.0] * len(rows)
    for chunk in _chunks(range(len(rows)), 4096):
        for indices in split_rows(chunk, [[rows[i]] for i in chunk], base, tokens):
            values = answer_logprobs(model, base, [rows[i] for i in indices]).logprob_B.double().tolist()
            for index, value in zip(indices, values, strict=True):
                result[index] = value
    return result


@dataclass(frozen=True, slots=True)
class Gap:
    """How far answers are from being samples of a player: a sum of martingale differences, in nats.

    A sampled token's log-prob has mean -H and a variance, both known from the distribution it was drawn
    from. total: sum(log p + H); variance: sum Var; largest: max |log p + H|.
    """

    total: float
    variance: float
    largest: float

    @property
    def z(self) -> float:
        """The total in standard deviations; near N(0, 1) for samples, unless tokens are nearly certain."""
        return self.total / math.sqrt(self.variance) if self.variance > 0 else 0.0

    def allowed(self, chance: float) -> float:
        """What |total| exceeds with at most this probability (Freedman 1975, Bernstein's bound for martingales)."""
        log = math.log(2 / chance)
        return math.sqrt(2 * log * self.variance) + 2 / 3 * log * self.largest


@torch.no_grad()
def sampling_gap(model: Any, base: Base, rows: Sequence[Row], tokens: int) -> Gap:
    """The gap of some answers under the seated player. Greedy answers, a temperature or others' answers show."""
    total = variance = largest = 0.0
    for indices in split_rows(range(len(rows)), [[row] for row in rows], base, tokens):
        batch = collate([rows[i] for i in indices], base.pad_id, base.device)
        logits_BAV = _logits(model, batch, base)
        entropy_BA, variance_BA = entropies(logits_BAV)
        surprise = (token_logprobs(logits_BAV, batch.targets_BA) + entropy_BA)[batch.answer_BA].double()
        total += surprise.sum().item()
        variance += variance_BA[batch.answer_BA].double().clamp(min=0).sum().item()
        largest = max(largest, surprise.abs().max().item())
    return Gap(total, variance, largest)


def _chunks(items: range, size: int) -> Iterator[range]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
