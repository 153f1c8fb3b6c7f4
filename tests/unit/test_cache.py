"""The cache in buffers: what rows see is what they have written, whoever enters, leaves or moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import ARCHITECTURES, config_of
from transformers import Qwen3NextConfig
from transformers.cache_utils import DynamicCache

from sparring.generation.cache import BufferedCache, OtherCache, cache_for

HEADS, WIDTH = 2, 3


def prefix_of(lengths: list[int], generator: torch.Generator) -> DynamicCache:
    """Keys of random numbers, values their negatives, rows padded on the right with numbers too."""
    prefix = DynamicCache()
    for layer in range(2):
        keys = torch.randn(len(lengths), HEADS, max(lengths), WIDTH, generator=generator)
        prefix.update(keys, -keys, layer)
    return prefix


class Ledger:
    """The same, kept row by row in the plainest way."""

    def __init__(self) -> None:
        self.rows: list[list[torch.Tensor]] = []  # [row][layer] of [H, tokens, D]

    def enter(self, prefix: DynamicCache, source: list[int], lengths: list[int]) -> None:
        for row, length in zip(source, lengths, strict=True):
            self.rows.append([layer.keys[row, :, :length].clone() for layer in prefix.layers])

    def step(self, cache: BufferedCache, generator: torch.Generator, windows: list[int | None]) -> None:
        mask = cache.before_step(torch.device("cpu"))
        new = torch.randn(2, len(self.rows), HEADS, 1, WIDTH, generator=generator)
        for layer, window in enumerate(windows):
            length, offset = cache.content.get_mask_sizes(1, layer)
            keys, values = cache.content.update(new[layer], -new[layer], layer)
            assert torch.equal(values, -keys)
            assert keys.shape[2] == length
            assert offset + length == cache.content.get_seq_length(layer) + 1
            for row, own in enumerate(self.rows):
                own[layer] = torch.cat([own[layer], new[layer, row]], dim=1)
                shown = torch.ones(length, dtype=torch.bool) if mask is None else mask[row, offset:]
                seen = own[layer] if window is None else own[layer][:, -window:]
                assert torch.equal(keys[row][:, shown], seen), "exactly its own tokens, in order"
                assert shown[-seen.shape[1] :].all()
        cache.after_step()


@pytest.mark.parametrize("seed", range(6))
def test_rows_see_their_own_tokens_and_no_others(seed: int) -> None:
    windows = [None, 4]
    choices = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    cache, ledger = BufferedCache(windows), Ledger()
    longest, places = 12, 3
    for _ in range(120):
        room = places - len(ledger.rows)
        if room and choices.random() < 0.4:
            # longest first, as the generator has them enter: who comes is no longer than those who are there
            lengths = sorted(choices.integers(0, longest + 1, size=min(room, 2)).tolist(), reverse=True)
            longest = max(3, max(lengths))
            prefix = prefix_of([longest] * len(lengths), generator) if max(lengths) else DynamicCache()
            source = [0] * len(lengths) if max(lengths) else list(range(len(lengths)))
            cache.reserve(places, 40)
            if max(lengths):
                ledger.enter(prefix, source, lengths)
            else:
                ledger.rows += [[torch.zeros(HEADS, 0, WIDTH)] * 2 for _ in lengths]
                ledger.rows[-len(lengths) :] = [list(row) for row in ledger.rows[-len(lengths) :]]
            cache.enter(prefix, np.array(source), np.array(lengths))
        if ledger.rows:
            ledger.step(cache, generator, windows)
        stays = [row[0].shape[1] < 30 and choices.random() < 0.9 for row in ledger.rows]
        keep = [row for row, stay in enumerate(stays) if stay]
        index = [*[row for row in keep if row < len(keep)]]
        moved = iter([row for row in keep if row >= len(keep)])
        index = [row if stays[row] else next(moved) for row in range(len(keep))]
        cache.keep(np.array(index, dtype=np.int64))
        ledger.rows = [ledger.rows[row] for row in index]
        places = min(6, places + int(choices.random() < 0.05))


def test_a_step_copies_nothing_but_the_token() -> None:
    """Also when a row leaves: the buffers stay where they are, and only the row that moves is written."""
    cache = BufferedCache([None])
    generator = torch.Generator().manual_seed(0)
    prefix = prefix_of([5] * 4, generator)
    cache.reserve(4, 20)
    cache.enter(_first_layer(prefix), np.arange(4), np.array([5, 4, 3, 2]))
    keys = cache.layers[0].keys
    before = keys.clone()
    cache.keep(np.array([0, 3, 2]))
    assert cache.layers[0].keys is keys
    assert torch.equal(keys[[0, 2, 3]], before[[0, 2, 3]])
    assert torch.equal(keys[1], before[3])
    before = keys.clone()
    token = torch.ones(3, HEADS, 1, WIDTH)
    shown, _ = cache.content.update(token, token, 0)
    assert shown.untyped_storage().data_ptr() == keys.untyped_storage().data_ptr()
    before[:3, :, 5] = 1
    assert torch.equal(keys, before)


def _first_layer(prefix: DynamicCache) -> DynamicCache:
    prefix.layers = prefix.layers[:1]
    return prefix


def test_columns_that_all_have_left_behind_are_passed_over() -> None:
    cache = BufferedCache([None])
    cache.reserve(3, 20)
    cache.enter(_first_layer(prefix_of([9] * 3, torch.Generator())), np.arange(3), np.array([9, 4, 2]))
    assert cache.before_step(torch.device("cpu")).shape == (3, 10)
    cache.keep(np.array([2, 1]))
    mask = cache.before_step(torch.device("cpu"))
    assert mask.tolist() == [[False, False, True, True, True], [True] * 5]
    cache.keep(np.array([1]))
    assert cache.before_step(torch.device("cpu")) is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_known_architecture_has_buffers(name: str) -> None:
    windows: Any = {"mistral": [6, 6], "gemma3": [6, None]}
    cache = cache_for(config_of(name))
    assert isinstance(cache, BufferedCache)
    assert [layer.window for layer in cache.layers] == windows.get(name, [None, None])


def test_other_layers_have_transformers_own_cache() -> None:
    config = Qwen3NextConfig(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    assert isinstance(cache_for(config), OtherCache)
