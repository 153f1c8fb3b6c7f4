"""Examples and pairs on disk: token ids in Arrow files, memory-mapped, so memory does not grow with the data.

Files are Arrow IPC, written whole under a temporary name and renamed; the same rows give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from sparring.data.messages import Example
from sparring.files import written

_IDS = pa.list_(pa.int32())


@dataclass(frozen=True, slots=True)
class Prompt:
    """One training or held-out example: a prompt, its real answer, and the key of its random numbers."""

    key: int
    prompt_ids: list[int]
    real_ids: list[int]
    real_ended: bool
    source: str


@dataclass(frozen=True, slots=True)
class Played:
    """What an opponent answered to one prompt, K times.

    finish    "end" (the last id is an end token) or "length" (cut: no end token)
    logprobs  log p of each answer as it was sampled, summed over its tokens, in nats
    """

    key: int
    prompt_ids: list[int]
    real_ids: list[int]
    synthetic_ids: list[list[int]]
    finish: list[str]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt, its real answer, K synthetic ones, and log p_theta_t of each under the current opponent.

    opponent_real, opponent_synthetic  sums over the answer's token log-probs, in nats
    played_at  the iteration whose opponent gave the synthetic answers
    weight     how much the pair counts
    """

    key: int
    prompt_ids: list[int]
    real_ids: list[int]
    synthetic_ids: list[list[int]]
    opponent_real: float
    opponent_synthetic: list[float]
    played_at: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt, the answer that people chose, and the one they rejected.

    weight  1, or 1/2 where a tie is told as two halves, one each way round
    votes   what each of several people said: 1 the chosen answer, 0 the other, 1/2 neither; empty if it is not known
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    source: str
    weight: float = 1.0
    votes: list[float] = field(default_factory=list)


def prompts_of(rows: Iterable[Prompt | Preference]) -> list[tuple[int, ...]]:
    """What tells the prompts of rows apart: those with the same token ids are one, which is drawn as one unit."""
    return [tuple(row.prompt_ids) for row in rows]


@dataclass(frozen=True, slots=True)
class Rewarded:
    """What the answers to one prompt are worth, in the order in which they were played."""

    key: int
    rewards: list[float]


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with its sampled answers, their advantages, and log p of each of their tokens, in nats.

    sampled  under the player that gave them; start: under theta_0
    """

    key: int
    prompt_ids: list[int]
    answer_ids: list[list[int]]
    advantages: list[float]
    sampled: list[list[float]]
    start: list[list[float]]


SCHEMAS: dict[type, pa.Schema] = {
    Prompt: pa.schema(
        [
            ("key", pa.uint64()),
            ("prompt_ids", _IDS),
            ("real_ids", _IDS),
            ("real_ended", pa.bool_()),
            ("source", pa.string()),
        ]
    ),
    Played: pa.schema(
        [
            ("key", pa.uint64()),
            ("prompt_ids", _IDS),
            ("real_ids", _IDS),
            ("synthetic_ids", pa.list_(_IDS)),
            ("finish", pa.list_(pa.string())),
            ("logprobs", pa.list_(pa.float64())),
        ]
    ),
    Pair: pa.schema(
        [
            ("key", pa.uint64()),
            ("prompt_ids", _IDS),
            ("real_ids", _IDS),
            ("synthetic_ids", pa.list_(_IDS)),
            ("opponent_real", pa.float64()),
            ("opponent_synthetic", pa.list_(pa.float64())),
            ("played_at", pa.int32()),
            ("weight", pa.float64()),
        ]
    ),
    Preference: pa.schema(
        [
            ("prompt_ids", _IDS),
            ("chosen_ids", _IDS),
            ("rejected_ids", _IDS),
            ("source", pa.string()),
            ("weight", pa.float64()),
            ("votes", pa.list_(pa.float64())),
        ]
    ),
    Rewarded: pa.schema([("key", pa.uint64()), ("rewards", pa.list_(pa.float64()))]),
    Group: pa.schema(
        [
            ("key", pa.uint64()),
            ("prompt_ids", _IDS),
            ("answer_ids", pa.list_(_IDS)),
            ("advantages", pa.list_(pa.float64())),
            ("sampled", pa.list_(pa.list_(pa.float32()))),
            ("start", pa.list_(pa.list_(pa.float32()))),
        ]
    ),
}

Row = TypeVar("Row", Prompt, Played, Pair, Preference, Rewarded, Group)


def keyed(examples: Iterable[Example]) -> list[Prompt]:
    """Give every example the key of its random numbers: a hash of its content and, for exact copies, a count.

    The key does not depend on the order of the rows, so neither do the opponent's answers.
    """
    seen: Counter[bytes] = Counter()
    prompts = []
    for example in examples:
        ids = [len(example.prompt_ids), *example.prompt_ids, *example.answer_ids]
        content = np.asarray(ids, dtype=np.int64).tobytes()
        copy = seen[content]
        seen[content] += 1
        raw = hashlib.blake2b(content + copy.to_bytes(8, "little"), digest_size=8).digest()
        prompts.append(
            Prompt(
                int.from_bytes(raw, "little"),
                example.prompt_ids,
                example.answer_ids,
                example.ended,
                example.source,
            )
        )
    return prompts


def write_rows(path: Path, rows: Sequence[Row], kind: type[Row]) -> None:
    """Write rows of one kind to an Arrow file, atomically."""
    write_stream(path, [rows], kind)


def write_stream(path: Path, batches: Iterable[Sequence[Row]], kind: type[Row]) -> None:
    """Write batches of rows as they come; only one batch is in memory at a time."""
    schema = SCHEMAS[kind]
    with written(path) as file, pa.ipc.new_file(file, schema) as writer:
        for rows in batches:
            writer.write_batch(pa.RecordBatch.from_pylist([asdict(row) for row in rows], schema=schema))


class Rows(Sequence[Row], Generic[Row]):
    """Arrow files of one kind, memory-mapped; an index reads one row, a slice a list of rows."""

    def __init__(self, paths: Sequence[Path], kind: type[Row]) -> None:
        self._kind: Any = kind
        tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
        self._table: Any = pa.concat_tables(tables) if tables else SCHEMAS[kind].empty_table()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise IndexError("rows are read in order: a slice takes no step")
            return [self._kind(**row) for row in self._table.slice(start, max(0, stop - start)).to_pylist()]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._kind(**self._table.slice(index % len(self), 1).to_pylist()[0])

    def batches(self, size: int) -> Iterator[list[Row]]:
        """Lists of at most `size` rows, in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def column(self, name: str) -> Any:
        """One column as an Arrow array."""
        return self._table.column(name).combine_chunks()

    def numbers(self, name: str, missing: float) -> list[float]:
        """A column of numbers, row by row; `missing` for each where files of an earlier version have no such column."""
        if name not in self._table.column_names:
            return [missing] * len(self)
        return [float(value) for value in self._table.column(name).to_pylist()]

    def lengths(self, name: str) -> list[int]:
        """The number of ids in a list column, row by row."""
        import pyarrow.compute as pc

        return [int(n) for n in pc.list_value_length(self._table.column(name)).to_pylist()]

    def inner_lengths(self, name: str) -> list[list[int]]:
        """The numbers of ids in a column of lists of lists, row by row."""
        import pyarrow.compute as pc

        found: list[list[int]] = []
        for chunk in self._table.column(name).chunks:
            inner = iter(pc.list_value_length(chunk.flatten()).to_pylist())
            found += [[next(inner) for _ in range(n)] for n in pc.list_value_length(chunk).to_pylist()]
        return found
