"""From token ids to padded tensors, and from many rows to micro-batches by token budget.

The layout is two-row: a row `[prompt | answer]` for each answer, right-padded.
Shapes: B rows, L tokens of the longest row, A positions from the first answer token on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Row = tuple[list[int], list[int]]  # prompt ids, answer ids


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows, and where their answers are.

    first         the logits at positions first … L-2 predict all answer tokens of the batch
    targets_BA    the token each of these positions has to predict
    answer_BA     True where that token belongs to the row's answer (never prompt or pad)
    """

    input_ids_BL: Tensor
    first: int
    targets_BA: Tensor
    answer_BA: Tensor


def collate(rows: Sequence[Row], pad_id: int, device: torch.device | str) -> Batch:
    """Pad rows on the right. Every row needs at least one prompt token and one answer token."""
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    first = min(len(prompt) for prompt, _ in rows) - 1
    if first < 0 or any(not answer for _, answer in rows):
        raise ValueError("a row has no prompt token or no answer token; its loss would silently be 0")
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    answer_mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[index, :end] = torch.tensor(prompt + answer, dtype=torch.long)
        answer_mask[index, len(prompt) : end] = True
    return Batch(
        ids.to(device),
        first,
        ids[:, first + 1 :].to(device),
        answer_mask[:, first + 1 :].to(device),
    )


def micro_batches(
    indices: Sequence[int], rows_of: Sequence[Sequence[Row]], tokens: int, logits: int, vocabulary: int
) -> list[list[int]]:
    """Split items into micro-batches that stay within two budgets; an item is never split.

    rows_of     the rows of each item in `indices`: a pair has 1 + K of them
    tokens      padded tokens per micro-batch
    logits      padded answer positions times vocabulary per micro-batch
    Longest items first, ties in the given order; an item too large for the budgets is alone.
    """
    sizes = [max(len(prompt) + len(answer) for prompt, answer in rows) for rows in rows_of]
    order = sorted(range(len(indices)), key=lambda item: (-sizes[item], item))
    batches: list[list[int]] = []
    count, longest, shortest_prompt = 0, 0, 0
    for item in order:
        rows = rows_of[item]
        new_count = count + len(rows)
        prompt = min(len(row[0]) for row in rows)
        new_prompt = min(shortest_prompt, prompt) if count else prompt
        new_longest = max(longest, sizes[item])
        fits = new_count * new_longest <= tokens and new_count * (new_longest - new_prompt) * vocabulary <= logits
        if batches and fits:
            batches[-1].append(indices[item])
            count, longest, shortest_prompt = new_count, new_longest, new_prompt
        else:
            batches.append([indices[item]])
            count, longest, shortest_prompt = len(rows), sizes[item], prompt
    return batches
