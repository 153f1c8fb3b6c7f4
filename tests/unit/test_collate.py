"""Padding, masks, and micro-batches whose sizes do not change the result."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.helpers import base_of, disturb, random_rows, ring_of

from sparring.config import SelfPlayConfig
from sparring.data.collate import Row, collate, micro_batches
from sparring.data.pairs import Pair, Prompt, Rows, write_rows
from sparring.models.players import Player, Ring
from sparring.tasks import PairTask, SFTTask

ROWS: list[Row] = [([5, 6, 7], [8, 9]), ([5], [6, 7, 8]), ([1, 2, 3, 4, 5], [6])]
PAD = 0

# ---------------------------------------------------------------- padding and masks


def test_rows_are_padded_on_the_right() -> None:
    batch = collate(ROWS, PAD, "cpu")
    assert batch.input_ids_BL.tolist() == [[5, 6, 7, 8, 9, 0], [5, 6, 7, 8, 0, 0], [1, 2, 3, 4, 5, 6]]


def test_targets_and_masks_are_the_answers() -> None:
    batch = collate(ROWS, PAD, "cpu")
    assert batch.first == 0
    assert batch.targets_BA.shape == batch.answer_BA.shape == (3, 5)
    for row, (_, answer) in enumerate(ROWS):
        assert batch.targets_BA[row][batch.answer_BA[row]].tolist() == answer
    # the logits at position first + i predict target i
    assert torch.equal(batch.targets_BA, batch.input_ids_BL[:, batch.first + 1 :])


def test_a_batch_of_long_prompts_starts_at_the_last_prompt_token() -> None:
    batch = collate([([1, 2, 3], [4]), ([1, 2, 3, 4], [5, 6])], PAD, "cpu")
    assert batch.first == 2
    assert batch.targets_BA.tolist() == [[4, 0, 0], [4, 5, 6]]
    assert batch.answer_BA.tolist() == [[True, False, False], [False, True, True]]


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_or_pad_token_is_counted(seed: int) -> None:
    """Prompts, answers and padding from three disjoint sets of ids."""
    rows = [
        ([p % 50 + 100 for p in prompt], [a % 50 + 200 for a in answer]) for prompt, answer in random_rows(400, seed)
    ]
    batch = collate(rows, 300, "cpu")
    counted = batch.targets_BA[batch.answer_BA]
    assert counted.tolist() == [token for _, answer in rows for token in answer]
    padding = [row[len(prompt) + len(answer) :] for row, (prompt, answer) in zip(batch.input_ids_BL, rows, strict=True)]
    assert all((end == 300).all() for end in padding)


def test_a_pad_token_inside_an_answer_is_counted() -> None:
    batch = collate([([5], [6, PAD]), ([5], [6, 7, 8])], PAD, "cpu")
    assert batch.answer_BA.tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("row", [([], [1]), ([1], []), ([], [])])
def test_an_empty_prompt_or_answer_is_refused(row: Row) -> None:
    with pytest.raises(ValueError, match="no prompt token or no answer token"):
        collate([([1], [2]), row], PAD, "cpu")


# ---------------------------------------------------------------- micro-batches


def items_of(seed: int, count: int = 40) -> list[list[Row]]:
    """Items of one to four rows that share a prompt, as pairs with K answers do."""
    generator = torch.Generator().manual_seed(seed)
    rows = random_rows(400, seed, count * 4)
    sizes = torch.randint(1, 5, (count,), generator=generator).tolist()
    return [[(rows[4 * i][0], rows[4 * i + k][1]) for k in range(size)] for i, size in enumerate(sizes)]


def cost(items: list[list[Row]], vocabulary: int) -> tuple[int, int]:
    """What `collate` really makes of some items: padded tokens, and padded logits."""
    batch = collate([row for item in items for row in item], PAD, "cpu")
    return batch.input_ids_BL.numel(), batch.targets_BA.numel() * vocabulary


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tokens", [1, 50, 200, 1000, 10**6])
@pytest.mark.parametrize("logits", [1, 3000, 20_000, 10**9])
def test_micro_batches(seed: int, tokens: int, logits: int) -> None:
    items = items_of(seed)
    numbers = list(range(1000, 1000 + len(items)))
    batches = micro_batches(numbers, items, tokens, logits, 7)
    assert sorted(item for batch in batches for item in batch) == numbers
    assert all(batches)
    for batch in batches:
        padded, size = cost([items[item - 1000] for item in batch], 7)
        assert len(batch) == 1 or (padded <= tokens and size <= logits)
    assert batches == micro_batches(numbers, items, tokens, logits, 7)


def test_generous_budgets_give_one_batch_and_tight_ones_the_items() -> None:
    items = items_of(0)
    numbers = list(range(len(items)))
    assert len(micro_batches(numbers, items, 10**6, 10**9, 7)) == 1
    assert len(micro_batches(numbers, items, 1, 10**9, 7)) == len(items)
    assert len(micro_batches(numbers, items, 10**6, 1, 7)) == len(items)
    assert micro_batches([], [], 10, 10, 7) == []


def test_the_longest_come_first_and_ties_keep_their_order() -> None:
    items = [[([1], [2])], [([1], [2, 3, 4])], [([1], [5])], [([1, 1], [5, 6])]]
    assert micro_batches([10, 11, 12, 13], items, 4, 10**9, 7) == [[11], [13], [10, 12]]


def test_batches_are_filled() -> None:
    """Greedy: the first item of a batch would not have fitted into the batch before."""
    items = items_of(2)
    batches = micro_batches(range(len(items)), items, 300, 10**9, 7)
    for before, after in pairwise(batches):
        assert cost([items[i] for i in [*before, after[0]]], 7)[0] > 300


# ---------------------------------------------------------------- the split does not change the gradient


def challenger(seed: int = 0) -> Ring:
    ring = ring_of(base_of("llama"))
    ring.challenge(Player.untrained(ring.base), seed)
    disturb(ring)
    ring.model.train()
    return ring


def gradient(ring: Ring, task: PairTask | SFTTask, items: list[int]) -> tuple[dict[str, torch.Tensor], float, int]:
    """As `Trainer.training_step` adds it up: gradients, loss, and the number of micro-batches."""
    total, batches = 0.0, task.split(items)
    for batch in batches:
        loss, _ = task.loss(ring.model, batch)
        (loss / task.weight(items)).backward()
        total += loss.item() / task.weight(items)
    found = {name: p.grad.double().clone() for name, p in ring.trainable().items()}
    ring.model.zero_grad()
    return found, total, len(batches)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("samples", [1, 3])
def test_gradients_of_pairs_do_not_depend_on_the_split(samples: int, reduction: str, tmp_path: Path) -> None:
    ring = challenger()
    vocabulary = ring.base.vocabulary
    real, other = random_rows(vocabulary, 1, 10), random_rows(vocabulary, 2, 10 * samples)
    pairs = [
        Pair(i, prompt, answer, [other[i * samples + k][1] for k in range(samples)], -9.0, [-9.5] * samples, 0)
        for i, (prompt, answer) in enumerate(real)
    ]
    write_rows(tmp_path / "pairs.arrow", pairs, Pair)
    rows = Rows([tmp_path / "pairs.arrow"], Pair)
    config = SelfPlayConfig(beta=0.1, anchor=0.3, samples=samples, reduction=reduction)
    found = {}
    for tokens in (1, 100 * (1 + samples), 10**6):
        task = PairTask(ring.base, rows, config, 0, tokens)
        found[tokens] = gradient(ring, task, [7, 2, 9, 0, 4, 5, 1])
    counts = [count for *_, count in found.values()]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 7
    assert 1 < counts[1] < 7
    assert counts[2] == 1
    assert_same_gradients(found)


def test_gradients_of_fine_tuning_do_not_depend_on_the_split(tmp_path: Path) -> None:
    ring = challenger()
    rows = random_rows(ring.base.vocabulary, 3, 10)
    write_rows(tmp_path / "train.arrow", [Prompt(i, p, a, True, "") for i, (p, a) in enumerate(rows)], Prompt)
    kept = Rows([tmp_path / "train.arrow"], Prompt)
    found = {tokens: gradient(ring, SFTTask(ring.base, kept, tokens), [3, 1, 8, 0, 5]) for tokens in (1, 90, 10**6)}
    assert found[1][-1] == 5
    assert_same_gradients(found)


def assert_same_gradients(found: dict[int, tuple[dict[str, torch.Tensor], float, int]]) -> None:
    first, loss, _ = found[1]
    norm = torch.stack([value.norm() for value in first.values()]).norm()
    assert norm > 0
    for tokens, (other, other_loss, _) in found.items():
        assert other_loss == pytest.approx(loss, rel=1e-6), tokens
        distance = torch.stack([(first[name] - other[name]).norm() for name in first]).norm()
        assert distance <= 2e-6 * norm, tokens
