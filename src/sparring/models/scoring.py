"""Log-probabilities of answers under the player that is seated: one function for scoring and training.

Rows are (prompt, answer); neighbours with the same prompt share it where the base's layout can.
Shapes: A rows, N tokens of all their answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparring.data.collate import Batch, Row, collate, micro_batches, packed_tokens
from sparring.models.base import Base
from sparring.models.forward import token_confidences, token_logprobs, token_states, token_surprises
from sparring.models.virtual import placed

# Tokens scored at once on a CPU: more does not make it faster, and takes memory.
CPU_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Scores:
    """What a forward pass says about A answers: sums of token log-probs in nats (fp64), and token counts."""

    logprob_A: Tensor
    tokens_A: Tensor


def answer_logprobs(model: Any, base: Base, rows: Sequence[Row]) -> Scores:
    """log p(answer | prompt) of every row, summed over the answer's tokens and over nothing else."""
    logprob_N, tokens_A = answer_tokens(model, base, rows)
    return Scores(torch.segment_reduce(logprob_N, "sum", lengths=tokens_A), tokens_A)


def answer_tokens(model: Any, base: Base, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """(log p of every token of every row's answer in nats, fp64 [N]; tokens of each answer [A])."""
    batch = _collate(base, rows)
    logprob_N = token_logprobs(model, batch, base.layout).double()
    return logprob_N, torch.tensor(batch.tokens, device=base.device)


def last_states(model: Any, base: Base, rows: Sequence[Row]) -> Tensor:
    """The last hidden state at every answer's last token, which has seen all of it, [A, D].

    That token is no input where log-probs are wanted, for it predicts nothing; so one more is laid behind it.
    """
    batch = _collate(base, [(prompt, [*answer, base.pad_id]) for prompt, answer in rows])
    last_A = torch.tensor(batch.tokens, device=base.device).cumsum(0) - 1
    return token_states(model, replace(batch, at_N=batch.at_N[last_A]), base.layout)


def _collate(base: Base, rows: Sequence[Row]) -> Batch:
    """Rows as the seated player is called with them: its virtual tokens before every prompt."""
    batch = collate(_prefaced(base, rows), base.pad_id, base.device, base.layout.packed, base.layout.flash)
    return replace(batch, positions_BL=placed(base.model, batch.input_ids_BL, batch.positions_BL))


def _prefaced(base: Base, rows: Sequence[Row]) -> Sequence[Row]:
    prelude = base.prelude
    return [(prelude + prompt, answer) for prompt, answer in rows] if prelude else rows


def split_rows(indices: Sequence[int], rows_of: Sequence[Sequence[Row]], base: Base, tokens: int) -> list[list[int]]:
    """Micro-batches of items within the token budget."""
    return micro_batches(indices, [_prefaced(base, rows) for rows in rows_of], tokens, base.layout.packed)


def computed_tokens(base: Base, rows: Sequence[Row]) -> int:
    """How many tokens the linear layers compute for some rows: a shared prompt once, virtual ones, no padding."""
    rows = _prefaced(base, rows)
    if base.layout.packed:
        return packed_tokens(rows)
    return sum(len(prompt) + len(answer) - 1 for prompt, answer in rows)


def score(model: Any, base: Base, rows: Sequence[Row], tokens: int) -> list[float]:
    """Summed log-prob of each row's answer in nats, in the order given, under the seated player."""
    return each(lambda some: answer_logprobs(model, base, some).logprob_A.tolist(), base, rows, tokens)


@torch.no_grad()
def score_tokens(model: Any, base: Base, rows: Sequence[Row], tokens: int) -> list[list[float]]:
    """Log-probs of the tokens of each row's answer in nats, in the order given, under the seated player."""

    def of(some: Sequence[Row]) -> list[list[float]]:
        logprob_N, tokens_A = answer_tokens(model, base, some)
        return [part.tolist() for part in torch.split(logprob_N, tokens_A.tolist())]

    return each(of, base, rows, tokens)


@torch.no_grad()
def each(found: Callable[[list[Row]], list[Any]], base: Base, rows: Sequence[Row], tokens: int) -> list[Any]:
    """What is found for each row, in the order given; asked in micro-batches within the token budget."""
    result: list[Any] = [None] * len(rows)
    tokens = min(tokens, CPU_TOKENS) if base.device.type == "cpu" else tokens
    for chunk in _chunks(_neighbours(rows, tokens, base.virtual), 1024):
        items = list(range(len(chunk)))
        for chosen in split_rows(items, [[rows[i] for i in item] for item in chunk], base, tokens):
            indices = [i for item in chosen for i in chunk[item]]
            values = found([rows[i] for i in indices])
            for index, value in zip(indices, values, strict=True):
                result[index] = value
    return result


def _neighbours(rows: Sequence[Row], tokens: int, virtual: int) -> list[list[int]]:
    """Row numbers, those of neighbours with the same prompt together as far as the budget goes.

    virtual  tokens before every prompt
    """
    items: list[list[int]] = []
    used = 0
    for index, (prompt, answer) in enumerate(rows):
        used += len(answer)
        if items and rows[items[-1][0]][0] == prompt and used <= tokens:
            items[-1].append(index)
        else:
            items.append([index])
            used = virtual + len(prompt) + len(answer)
    return items


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
    for batch in _batches(base, rows, tokens):
        logprob_N, entropy_N, variance_N = token_surprises(model, batch, base.layout)
        surprise_N = (logprob_N + entropy_N).double()
        total += surprise_N.sum().item()
        variance += variance_N.double().clamp(min=0).sum().item()
        largest = max(largest, surprise_N.abs().max().item())
    return Gap(total, variance, largest)


@torch.no_grad()
def calibration(model: Any, base: Base, rows: Sequence[Row], tokens: int) -> tuple[Tensor, Tensor]:
    """(probability of the likeliest token, whether the answer has it) at every token of some answers, in any order.

    fp32 and bool on the CPU, as many as the answers have tokens; logits are alive in tiles.
    """
    tokens = min(tokens, CPU_TOKENS) if base.device.type == "cpu" else tokens
    found = [token_confidences(model, batch, base.layout) for batch in _batches(base, rows, tokens)]
    return torch.cat([confidence.cpu() for confidence, _ in found]), torch.cat([right.cpu() for _, right in found])


def _batches(base: Base, rows: Sequence[Row], tokens: int) -> Iterator[Batch]:
    """All rows in micro-batches, those with the same prompt together as far as the budget goes."""
    items = _neighbours(rows, tokens, base.virtual)
    for chosen in split_rows(range(len(items)), [[rows[i] for i in item] for item in items], base, tokens):
        yield _collate(base, [rows[i] for item in chosen for i in items[item]])


def _chunks(items: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
