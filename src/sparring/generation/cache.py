"""Keys and values of the rows being decoded, which enter, move on together and leave.

All rows end in the same column; a row that has fewer tokens begins in a later one. A token is written into its
place, a row that leaves is overwritten by the last one, and columns that no row needs any more are passed over:
nothing else is copied.

Shapes: B rows, N entering rows, P tokens of the longest of them, H heads, C columns, D a head's width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from sparring.errors import ModelError

Numbers = NDArray[np.int64]


class Held(Protocol):
    """What decoding needs of a cache.

    content  what the model is given as past_key_values
    mixed    rows of different lengths may stand together, and rows may enter while others go on
    """

    content: Any
    mixed: bool

    def blank(self) -> Any:
        """An empty transformers cache to compute prompts with."""
        ...

    def reserve(self, places: int, columns: int) -> None:
        """Hold up to `places` rows of up to `columns` tokens."""
        ...

    def enter(self, prefix: Any, source_N: Numbers, lengths_N: Numbers) -> None:
        """Rows enter behind the others: row i has the first lengths_N[i] tokens of `prefix`'s row source_N[i]."""
        ...

    def before_step(self, device: torch.device) -> Tensor | None:
        """The attention mask [B, columns] of the step that follows; None where nothing is hidden."""
        ...

    def after_step(self) -> None:
        """Every row has one token more."""
        ...

    def keep(self, index_B: Numbers) -> None:
        """Row i is now what row index_B[i] was; the others are gone. A row that moves comes from behind."""
        ...


def cache_for(config: Any) -> Held:
    """The cache for a transformers config: buffers, unless it has layers of a kind that they cannot hold."""
    text = config.get_text_config(decoder=True).to_dict()
    layers = DynamicCache(config=config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    if not plain or text.get("attention_chunk_size") or "chunked_attention" in (text.get("layer_types") or ()):
        return OtherCache(config)
    return BufferedCache([layer.sliding_window if layer.is_sliding else None for layer in layers])


@dataclass
class _Place:
    """Which part of the buffers is in use, in every layer alike.

    begins_B  the column of each row's first token
    end       the column after the last
    """

    places: int = 0
    columns: int = 0
    end: int = 0
    begins_B: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def rows(self) -> int:
        return len(self.begins_B)

    @property
    def first(self) -> int:
        return int(self.begins_B.min()) if self.rows else self.end

    @property
    def used(self) -> tuple[slice, slice, slice]:
        return slice(0, self.rows), slice(None), slice(self.first, self.end)


@final
class _Layer(DynamicLayer):
    """One layer's keys and values, in buffers [places, H, C, D] of which the model sees what is in use.

    window  of sliding attention: a token sees itself and the window - 1 before it
    """

    def __init__(self, place: _Place, window: int | None) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self.place = place
        self.window = window
        self.is_sliding = window is not None

    def buffers(self, like_key: Tensor, like_value: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers, made when the first keys and values show their shapes."""
        if not self.is_initialized:
            # Zeros, for what a mask hides is still multiplied by 0: it may be anything but NaN.
            self.keys, self.values = self._zeros(like_key), self._zeros(like_value)
            self.is_initialized = True
        return self.keys, self.values

    def _zeros(self, like: Tensor) -> Tensor:
        return like.new_zeros((self.place.places, like.shape[1], self.place.columns, like.shape[3]))

    def enlarge(self) -> None:
        """Buffers of the place's present size, with the rows that are in use."""
        if self.is_initialized:
            used = self.place.used
            old = (self.keys, self.values)
            self.keys, self.values = self._zeros(old[0]), self._zeros(old[1])
            self.keys[used], self.values[used] = old[0][used], old[1][used]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one token's keys and values, each [B, H, 1, D]; returns all that the token sees."""
        keys, values = self.buffers(key_states, value_states)
        rows, end = self.place.rows, self.place.end
        keys[:rows, :, end : end + 1] = key_states
        values[:rows, :, end : end + 1] = value_states
        seen = slice(end - self._kept(), end + 1)
        return keys[:rows, :, seen], values[:rows, :, seen]

    def _kept(self) -> int:
        """How many tokens back the next one sees."""
        length = self.get_seq_length()
        return length if self.window is None else min(length, self.window - 1)

    def get_seq_length(self) -> int:
        return self.place.end - self.place.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns that are handed to attention, columns before them): what transformers makes masks from."""
        return self._kept() + query_length, self.get_seq_length() - self._kept()


@final
class BufferedCache:
    """A cache in buffers, for layers of full or sliding attention."""

    mixed = True

    def __init__(self, windows: list[int | None]) -> None:
        self.place = _Place()
        self.layers = [_Layer(self.place, window) for window in windows]
        self.content: Any = Cache(layers=self.layers)

    def blank(self) -> Any:
        return DynamicCache()  # without the config: sliding layers too keep every token, for rows of any length

    def reserve(self, places: int, columns: int) -> None:
        place = self.place
        if places > place.places or columns > place.columns:
            self._to_the_left()
            place.places, place.columns = places, columns
            for layer in self.layers:
                layer.enlarge()

    def enter(self, prefix: Any, source_N: Numbers, lengths_N: Numbers) -> None:
        place, longest = self.place, int(lengths_N.max())
        if not place.rows:
            place.end = longest
        if longest:
            if not prefix.layers:
                raise ModelError("this base keeps nothing in a cache, so it cannot be played; give another model.base")
            # The last tokens stand in the last column; what is picked before a row's first token is hidden.
            columns_NP = np.maximum(0, np.arange(longest) - (longest - lengths_N)[:, None])
            device = prefix.layers[0].keys.device
            pick = torch.from_numpy(source_N[:, None]).to(device), torch.from_numpy(columns_NP).to(device)
            there = slice(place.rows, place.rows + len(source_N)), slice(None), slice(place.end - longest, place.end)
            for layer, given in zip(self.layers, prefix.layers, strict=True):
                keys, values = layer.buffers(given.keys, given.values)
                keys[there] = given.keys.transpose(1, 2)[pick].transpose(1, 2)
                values[there] = given.values.transpose(1, 2)[pick].transpose(1, 2)
        place.begins_B = np.concatenate([place.begins_B, place.end - lengths_N])

    def before_step(self, device: torch.device) -> Tensor | None:
        if self.place.end == self.place.columns:
            self._to_the_left()
        hidden_B = self.place.begins_B - self.place.first
        if not hidden_B.any():
            return None
        columns_C = torch.arange(self.place.end - self.place.first + 1, device=device)
        return columns_C >= torch.from_numpy(hidden_B).to(device).unsqueeze(-1)

    def after_step(self) -> None:
        self.place.end += 1

    def keep(self, index_B: Numbers) -> None:
        place = self.place
        to = np.flatnonzero(index_B != np.arange(len(index_B)))
        here = slice(place.first, place.end)
        place.begins_B = place.begins_B[index_B]
        if len(to):
            for layer in self.layers:
                onto, moved = (torch.from_numpy(rows).to(layer.keys.device) for rows in (to, index_B[to]))
                for buffer in (layer.keys, layer.values):
                    buffer[onto, :, here] = buffer[moved, :, here]

    def _to_the_left(self) -> None:
        """Move what is in use to the first column, so that there is room behind."""
        place = self.place
        first, length = place.first, place.end - place.first
        if first and place.rows:
            for layer in self.layers:
                for buffer in (layer.keys, layer.values):
                    buffer[: place.rows, :, :length] = buffer[place.used].clone()
        place.begins_B = place.begins_B - first
        place.end = length


@final
class OtherCache:
    """transformers' own cache, for all other kinds of layers: rows of one length enter and move on together."""

    mixed = False

    def __init__(self, config: Any) -> None:
        self.config = config
        self.content: Any = self.blank()

    def blank(self) -> Any:
        return DynamicCache(config=self.config)

    def reserve(self, places: int, columns: int) -> None:
        """It grows by itself."""

    def enter(self, prefix: Any, source_N: Numbers, lengths_N: Numbers) -> None:
        self.content = prefix
        self.content.reorder_cache(torch.from_numpy(source_N))

    def before_step(self, device: torch.device) -> Tensor | None:
        return None

    def after_step(self) -> None:
        """It has counted the token itself."""

    def keep(self, index_B: Numbers) -> None:
        self.content.reorder_cache(torch.from_numpy(index_B))
