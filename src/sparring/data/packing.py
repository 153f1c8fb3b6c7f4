"""Packed rows: every prompt once, its answers behind it, no padding; and how attention finds its way in them.

Two prompts, the first with two answers, in one row of T tokens:

    [ prompt | answer | answer ][ prompt | answer ]

Everything but attention works on tokens one by one, so it works on the packed row as it is. Attention sees
each answer behind its own prompt: tokens are gathered into ordinary rows `[prompt | answer]`, attended to
causally, and brought back (`Unpacking`). An answer's last token predicts nothing, so it is no input.
Shapes: T packed tokens, R rows of a bucket, L their longest, A its longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Group = tuple[list[int], list[list[int]]]  # prompt ids, ids of its answers

# Rows share one call of attention when the shorter are at least this share of the longest.
ALIKE = 0.7


@dataclass(slots=True)
class Bucket:
    """Rows of like lengths, attended to in one call.

    keys_RL     where in the packed row each row's tokens are; behind its end, its last token again
    queries_RA  the tokens that ask; None: all of `keys_RL`
    shift_R     how many keys come before a row's first query; None: 0
    """

    keys_RL: Tensor
    queries_RA: Tensor | None = None
    shift_R: Tensor | None = None
    _masks: dict[tuple[int | None, torch.dtype], Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype = torch.bool) -> Tensor | None:
        """True where a query may look, [1 or R, 1, A, L]; None when plain causal attention does.

        window  how many tokens a query sees, itself included; None: all before it
        dtype   a floating type: what is added to the scores instead, one tensor for all layers
        """
        longest = self.keys_RL.shape[1]
        window = None if window is None or window >= longest else window
        if (window, dtype) not in self._masks:
            seen = self._mask(window)
            if seen is not None and dtype.is_floating_point:
                seen = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, float("-inf"))
            self._masks[window, dtype] = seen
        return self._masks[window, dtype]

    def _mask(self, window: int | None) -> Tensor | None:
        if window is None and self.shift_R is None:
            return None
        device = self.keys_RL.device
        queries = self.keys_RL if self.queries_RA is None else self.queries_RA
        query_A1 = torch.arange(queries.shape[1], device=device).unsqueeze(-1)
        key_L = torch.arange(self.keys_RL.shape[1], device=device)
        shift_R11 = torch.zeros(1, 1, 1, device=device, dtype=torch.long)
        if self.shift_R is not None:
            shift_R11 = self.shift_R.view(-1, 1, 1)
        # padding of the queries stays inside, for a query that sees nothing can make NaN of gradients
        behind_RAL = (query_A1 + shift_R11).clamp(max=len(key_L) - 1) - key_L
        seen_RAL = behind_RAL >= 0
        if window is not None:
            seen_RAL = seen_RAL & (behind_RAL < window)
        return seen_RAL.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Unpacking:
    """From packed tokens to rows, and back.

    back_T     where each packed token is in the buckets' queries, laid one behind the other
    flash      whether to use a kernel for sequences of varying length instead of the buckets:
    keys, starts_q, starts_k, most_q, most_k   where its keys are, where each sequence starts in the queries (the
               packed tokens in their order) and in the keys, and the longest of both
    windows    the windows that attention layers have asked for so far
    """

    buckets: tuple[Bucket, ...]
    back_T: Tensor
    flash: bool
    keys: Tensor
    starts_q: Tensor
    starts_k: Tensor
    most_q: int
    most_k: int
    windows: set[int | None] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Packed:
    """One packed row of some groups, and what predicts their answers.

    at_N       the position whose output predicts each answer token
    targets_N  that token
    tokens     how many answer tokens each answer has, in order
    """

    input_ids_T: Tensor
    positions_T: Tensor
    at_N: Tensor
    targets_N: Tensor
    tokens: list[int]
    unpacking: Unpacking


@dataclass(slots=True)
class _Row:
    """Where a row's keys and queries are."""

    keys: list[int]
    queries: list[int]

    @property
    def short(self) -> bool:
        """Whether the answer asks alone: it is short against its prompt, which another row has asked for."""
        return len(self.queries) < len(self.keys)


def pack(groups: Sequence[Group], device: torch.device | str = "cpu", flash: bool = False) -> Packed:
    """Pack groups into one row. Every group needs a prompt token, and every answer a token.

    flash  attention will be one call of a kernel for sequences of varying length
    """
    ids: list[int] = []
    positions: list[int] = []
    at: list[int] = []
    targets: list[int] = []
    tokens: list[int] = []
    segments: list[_Row] = []
    rows: list[_Row] = []
    for prompt, answers in groups:
        prompt_at = list(range(len(ids), len(ids) + len(prompt)))
        ids += prompt
        positions += range(len(prompt))
        for number, answer in enumerate(answers):
            mine = list(range(len(ids), len(ids) + len(answer) - 1))
            ids += answer[:-1]
            positions += range(len(prompt), len(prompt) + len(answer) - 1)
            at += [prompt_at[-1], *mine]
            targets += answer
            tokens.append(len(answer))
            row = prompt_at + mine
            first = number == 0
            segments.append(_Row(row, row if first else mine))
            if first or mine:
                rows.append(_Row(row, row if first or 2 * len(mine) > len(prompt) else mine))
    ids_T, positions_T, at_N, targets_N = (
        torch.tensor(values, dtype=torch.long, device=device) for values in (ids, positions, at, targets)
    )
    unpacking = _unpacking(rows, segments, len(ids), device, flash)
    return Packed(ids_T, positions_T, at_N, targets_N, tokens, unpacking)


def _unpacking(
    rows: list[_Row], segments: list[_Row], total: int, device: torch.device | str, flash: bool
) -> Unpacking:
    buckets: list[Bucket] = []
    back = [0] * total
    offset = 0
    for bucket in _alike(rows):
        width = max(len(row.queries) for row in bucket)
        for number, row in enumerate(bucket):
            start = offset + number * width
            for place, token in enumerate(row.queries):
                back[token] = start + place
        offset += width * len(bucket)
        buckets.append(_bucket(bucket, device))
    asking = [segment for segment in segments if segment.queries]
    counts = torch.tensor([[0, 0], *([len(s.queries), len(s.keys)] for s in asking)], device=device)
    starts = counts.cumsum(0).to(torch.int32)
    return Unpacking(
        tuple(buckets),
        torch.tensor(back, dtype=torch.long, device=device),
        flash,
        torch.tensor([key for segment in asking for key in segment.keys], dtype=torch.long, device=device),
        starts[:, 0].contiguous(),
        starts[:, 1].contiguous(),
        *counts.max(0).values.tolist(),
    )


def _alike(rows: list[_Row]) -> list[list[_Row]]:
    """Rows of one form and of like lengths together, longest first."""
    found: list[list[_Row]] = []
    for row in sorted(rows, key=lambda row: (row.short, -len(row.keys))):
        last = found[-1][0] if found else None
        if last is not None and last.short == row.short and len(row.keys) >= ALIKE * len(last.keys):
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _bucket(rows: list[_Row], device: torch.device | str) -> Bucket:
    keys = _padded([row.keys for row in rows], device)
    if not rows[0].short:
        return Bucket(keys)
    shift = torch.tensor([len(row.keys) - len(row.queries) for row in rows], dtype=torch.long, device=device)
    return Bucket(keys, _padded([row.queries for row in rows], device), shift)


def _padded(lists: list[list[int]], device: torch.device | str) -> Tensor:
    longest = max(len(values) for values in lists)
    filled = [values + [values[-1]] * (longest - len(values)) for values in lists]
    return torch.tensor(filled, dtype=torch.long, device=device)
