"""Both layouts of a batch, and micro-batches whose sizes do not change the result."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.helpers import base_of, disturb, random_rows, ring_of

from sparring.config_selfplay import SelfPlayConfig
from sparring.data.collate import Batch, Row, collate, grouped, micro_batches, packed_tokens
from sparring.data.pairs import Pair, Prompt, Rows, write_rows
from sparring.models.forward import Layout
from sparring.models.players import Player, Ring
from sparring.tasks import PairTask, SFTTask

ROWS: list[Row] = [([5, 6, 7], [8, 9]), ([5], [6, 7, 8]), ([1, 2, 3, 4, 5], [6])]
PAD = 0
LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])


def seen_by(batch: Batch) -> list[tuple[int, int]]:
    """(the token at the position that predicts, the token predicted) for every answer token."""
    return list(zip(batch.input_ids_BL.flatten()[batch.at_N].tolist(), batch.targets_N.tolist(), strict=True))


# ---------------------------------------------------------------- padding and masks


def test_rows_are_padded_on_the_right() -> None:
    """An answer's last token predicts nothing: it is no input."""
    batch = collate(ROWS, PAD, "cpu")
    assert batch.input_ids_BL.tolist() == [[5, 6, 7, 8, 0], [5, 6, 7, 0, 0], [1, 2, 3, 4, 5]]
    assert batch.positions_BL is None
    assert batch.unpacking is None


def test_rows_are_packed_without_padding() -> None:
    batch = collate([*ROWS, ([1, 2, 3, 4, 5], [7, 8])], PAD, "cpu", packed=True)
    assert batch.input_ids_BL.tolist() == [[5, 6, 7, 8, 5, 6, 7, 1, 2, 3, 4, 5, 7]]
    assert batch.positions_BL is not None
    assert batch.positions_BL.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4, 5]]
    assert batch.at_N.tolist() == [2, 3, 4, 5, 6, 11, 11, 12]
    assert batch.targets_N.tolist() == [8, 9, 6, 7, 8, 6, 7, 8]
    assert batch.tokens == [2, 3, 1, 2]


@LAYOUTS
def test_targets_are_the_answers(packed: bool) -> None:
    batch = collate(ROWS, PAD, "cpu", packed)
    assert batch.targets_N.tolist() == [token for _, answer in ROWS for token in answer]
    assert batch.tokens == [2, 3, 1]
    # each is predicted by the token before it: the prompt's last, then the answer's own
    assert seen_by(batch) == [(7, 8), (8, 9), (5, 6), (6, 7), (7, 8), (5, 6)]


@LAYOUTS
@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_or_pad_token_is_counted(seed: int, packed: bool) -> None:
    """Prompts, answers and padding from three disjoint sets of ids."""
    rows = [
        ([p % 50 + 100 for p in prompt], [a % 50 + 200 for a in answer]) for prompt, answer in random_rows(400, seed)
    ]
    rows += [(rows[-1][0], answer) for _, answer in rows[:3]]
    batch = collate(rows, 300, "cpu", packed)
    assert batch.targets_N.tolist() == [token for _, answer in rows for token in answer]
    assert batch.tokens == [len(answer) for _, answer in rows]
    before = [token for prompt, answer in rows for token in [prompt[-1], *answer[:-1]]]
    assert [token for token, _ in seen_by(batch)] == before
    used = sorted(token for token in batch.input_ids_BL.flatten().tolist() if token != 300)
    if packed:
        assert batch.input_ids_BL.numel() == len(used) == packed_tokens(rows)
        given = [part for prompt, answers in grouped(rows) for part in [prompt, *(answer[:-1] for answer in answers)]]
        assert used == sorted(token for part in given for token in part)
    else:
        assert used == sorted(token for prompt, answer in rows for token in [*prompt, *answer[:-1]])
        for row, (prompt, answer) in zip(batch.input_ids_BL.tolist(), rows, strict=True):
            assert set(row[len(prompt) + len(answer) - 1 :]) <= {300}


@LAYOUTS
def test_a_pad_token_inside_an_answer_is_counted(packed: bool) -> None:
    batch = collate([([5], [6, PAD]), ([5], [6, PAD, 8])], PAD, "cpu", packed)
    assert seen_by(batch) == [(5, 6), (6, PAD), (5, 6), (6, PAD), (PAD, 8)]


@LAYOUTS
@pytest.mark.parametrize("row", [([], [1]), ([1], []), ([], [])])
def test_an_empty_prompt_or_answer_is_refused(row: Row, packed: bool) -> None:
    with pytest.raises(ValueError, match="no prompt token or no answer token"):
        collate([([1], [2]), row], PAD, "cpu", packed)


def test_only_neighbours_share_a_prompt() -> None:
    rows: list[Row] = [([1], [2]), ([1], [3]), ([4], [5]), ([1], [6]), ([1, 4], [7])]
    assert grouped(rows) == [([1], [[2], [3]]), ([4], [[5]]), ([1], [[6]]), ([1, 4], [[7]])]
    assert packed_tokens(rows) == 5


@pytest.mark.parametrize("window", [None, 1, 6, 40, 1000])
def test_every_query_sees_something(window: int | None) -> None:
    """Padding as well: a softmax over nothing would be NaN, in the gradients of all others, too."""
    rows: list[Row] = [([1] * 84, [2]), ([1] * 84, [2, 3]), ([1] * 60, [2]), ([1] * 60, [2] * 25), ([4], [5] * 9)]
    batch = collate(rows, PAD, "cpu", packed=True)
    assert batch.unpacking is not None
    shown = [bucket.mask(window) for bucket in batch.unpacking.buckets]
    assert any(mask is not None for mask in shown)
    assert all(mask.any(-1).all() for mask in shown if mask is not None)


# ---------------------------------------------------------------- micro-batches


def items_of(seed: int, count: int = 40) -> list[list[Row]]:
    """Items of one to four rows that share a prompt, as pairs with K answers do."""
    generator = torch.Generator().manual_seed(seed)
    rows = random_rows(400, seed, count * 4)
    sizes = torch.randint(1, 5, (count,), generator=generator).tolist()
    return [[(rows[4 * i][0], rows[4 * i + k][1]) for k in range(size)] for i, size in enumerate(sizes)]


def cost(items: list[list[Row]], packed: bool) -> int:
    """What `collate` really makes of some items: packed tokens, or padded ones."""
    return collate([row for item in items for row in item], PAD, "cpu", packed).input_ids_BL.numel()


@LAYOUTS
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tokens", [1, 50, 200, 1000, 10**6])
def test_micro_batches(seed: int, tokens: int, packed: bool) -> None:
    items = items_of(seed)
    numbers = list(range(1000, 1000 + len(items)))
    batches = micro_batches(numbers, items, tokens, packed)
    assert sorted(item for batch in batches for item in batch) == numbers
    assert all(batches)
    for batch in batches:
        assert len(batch) == 1 or cost([items[item - 1000] for item in batch], packed) <= tokens
    assert batches == micro_batches(numbers, items, tokens, packed)


@LAYOUTS
def test_generous_budgets_give_one_batch_and_tight_ones_the_items(packed: bool) -> None:
    items = items_of(0)
    numbers = list(range(len(items)))
    assert len(micro_batches(numbers, items, 10**6, packed)) == 1
    assert len(micro_batches(numbers, items, 1, packed)) == len(items)
    assert micro_batches([], [], 10, packed) == []


@LAYOUTS
def test_the_longest_come_first_and_ties_keep_their_order(packed: bool) -> None:
    items = [[([1], [2])], [([1], [2, 3, 4])], [([1], [5])], [([1, 1], [5, 6])]]
    # 1, 3, 1 and 3 tokens of input
    assert micro_batches([10, 11, 12, 13], items, 3, packed) == [[11], [13], [10, 12]]


@LAYOUTS
def test_batches_are_filled(packed: bool) -> None:
    """Greedy: the first item of a batch would not have fitted into the batch before."""
    items = items_of(2)
    batches = micro_batches(range(len(items)), items, 300, packed)
    assert len(batches) > 3
    for before, after in pairwise(batches):
        assert cost([items[i] for i in [*before, after[0]]], packed) > 300


def test_packed_batches_are_fewer() -> None:
    items = items_of(2)
    numbers = list(range(len(items)))
    assert len(micro_batches(numbers, items, 300, True)) < len(micro_batches(numbers, items, 300, False)) / 1.5


# ---------------------------------------------------------------- the split does not change the gradient


def challenger(packed: bool, seed: int = 0) -> Ring:
    base = base_of("llama")
    assert base.layout.packed
    ring = ring_of(base if packed else dataclasses.replace(base, layout=Layout(direct=True)))
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


@LAYOUTS
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("samples", [1, 3])
def test_gradients_of_pairs_do_not_depend_on_the_split(
    samples: int, reduction: str, packed: bool, tmp_path: Path
) -> None:
    ring = challenger(packed)
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
    for tokens in (1, 100 if packed else 100 * (1 + samples), 10**6):
        task = PairTask(ring.base, rows, config, 0, tokens)
        found[tokens] = gradient(ring, task, [7, 2, 9, 0, 4, 5, 1])
    counts = [count for *_, count in found.values()]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 7
    assert 1 < counts[1] < 7
    assert counts[2] == 1
    assert_same_gradients(found)


@LAYOUTS
def test_gradients_of_fine_tuning_do_not_depend_on_the_split(packed: bool, tmp_path: Path) -> None:
    ring = challenger(packed)
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
