"""From token ids to what a model is called with, and from many rows to micro-batches by token budget.

Two layouts. Packed: one row in which neighbours with the same prompt share it (data/packing.py). Rows: a row
`[prompt | answer]` for each answer, right-padded, for models that cannot share a prompt.
An answer's last token predicts nothing, so it is no input in either.
Shapes: B rows, L tokens of the longest row, N answer tokens of all rows, A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.data.packing import Group, Unpacking, pack

Row = tuple[list[int], list[int]]  # prompt ids, answer ids


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model is called with, and what its outputs have to predict.

    positions_BL  position ids; None: 0, 1, 2 … in every row
    unpacking     how attention finds its way in a packed row; None: ordinary rows
    at_N          which of the B·L outputs predicts each answer token
    targets_N     that token
    tokens        answer tokens of each answer, in order; they add up to N
    """

    input_ids_BL: Tensor
    positions_BL: Tensor | None
    unpacking: Unpacking | None
    at_N: Tensor
    targets_N: Tensor
    tokens: list[int]


def collate(
    rows: Sequence[Row], pad_id: int, device: torch.device | str, packed: bool = False, flash: bool = False
) -> Batch:
    """Lay rows out. Every row needs at least one prompt token and one answer token."""
    if any(not prompt or not answer for prompt, answer in rows):
        raise ValueError("a row has no prompt token or no answer token; its loss would silently be 0")
    return _packed(rows, device, flash) if packed else _padded(rows, pad_id, device)


def _packed(rows: Sequence[Row], device: torch.device | str, flash: bool) -> Batch:
    row = pack(grouped(rows), device, flash)
    ids_1T, positions_1T = row.input_ids_T.unsqueeze(0), row.positions_T.unsqueeze(0)
    return Batch(ids_1T, positions_1T, row.unpacking, row.at_N, row.targets_N, row.tokens)


def _padded(rows: Sequence[Row], pad_id: int, device: torch.device | str) -> Batch:
    length = max(len(prompt) + len(answer) - 1 for prompt, answer in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    at: list[int] = []
    targets: list[int] = []
    for index, (prompt, answer) in enumerate(rows):
        given = prompt + answer[:-1]
        ids[index, : len(given)] = torch.tensor(given, dtype=torch.long)
        first = index * length + len(prompt) - 1
        at += range(first, first + len(answer))
        targets += answer
    at_N, targets_N = (torch.tensor(values, dtype=torch.long, device=device) for values in (at, targets))
    return Batch(ids.to(device), None, None, at_N, targets_N, [len(answer) for _, answer in rows])


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Neighbours with the same prompt as one group."""
    groups: list[Group] = []
    for prompt, answer in rows:
        if groups and groups[-1][0] == prompt:
            groups[-1][1].append(answer)
        else:
            groups.append((prompt, [answer]))
    return groups


def packed_tokens(rows: Sequence[Row]) -> int:
    """Tokens that a model computes for some rows in the packed layout."""
    return sum(len(prompt) + sum(len(answer) - 1 for answer in answers) for prompt, answers in grouped(rows))


def micro_batches(
    indices: Sequence[int], rows_of: Sequence[Sequence[Row]], tokens: int, packed: bool = False
) -> list[list[int]]:
    """Split items into micro-batches within a token budget; an item is never split.

    rows_of     the rows of each item in `indices`: a pair has 1 + K of them
    tokens      packed tokens, or padded tokens of ordinary rows, per micro-batch
    Longest items first, ties in the given order; an item too large for the budget is alone.
    """
    sizes = [max(len(prompt) + len(answer) for prompt, answer in rows) for rows in rows_of]
    shared = [packed_tokens(rows) for rows in rows_of] if packed else []
    order = sorted(range(len(indices)), key=lambda item: (-sizes[item], item))
    batches: list[list[int]] = []
    used, count, longest = 0, 0, 0
    for item in order:
        new_count, new_longest = count + len(rows_of[item]), max(longest, sizes[item])
        new_used = used + shared[item] if packed else new_count * (new_longest - 1)
        if batches and new_used <= tokens:
            batches[-1].append(indices[item])
            used, count, longest = new_used, new_count, new_longest
        else:
            batches.append([indices[item]])
            count, longest = len(rows_of[item]), sizes[item]
            used = shared[item] if packed else count * (longest - 1)
    return batches
