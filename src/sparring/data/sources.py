"""Where rows come from: a file, a folder, the hub, the laboratory. Each gives its splits, row by row, by name."""

from __future__ import annotations

import csv
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sparring.data.values import BadRow
from sparring.errors import ConfigError, DataError, nearest

LABORATORY = "laboratory"
Numbered = Iterator[tuple[str, Any]]  # "file:line" or "file[row]", and the row, or the BadRow it became

_SHARD = re.compile(r"-\d+-of-\d+.*")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_USUAL_SPLIT = re.compile(r"train|test|val|dev|eval")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are read when asked for: how many, and those from start to stop."""

    count: Callable[[], int]
    read: Callable[[int, int], Numbered]


def _listed(name: str, rows: Sequence[Any]) -> Rows:
    return Rows(
        lambda: len(rows),
        lambda start, stop: ((f"{name}[row {index}]", rows[index]) for index in range(start, stop)),
    )


def _streamed(items: Callable[[], Numbered], decode: Callable[[str, Any], Any]) -> Rows:
    return Rows(
        lambda: sum(1 for _ in items()),
        lambda start, stop: ((at, decode(at, item)) for at, item in islice(items(), start, stop)),
    )


def _chained(parts: Sequence[Rows]) -> Rows:
    def read(start: int, stop: int) -> Numbered:
        for part in parts:
            count = part.count()
            yield from part.read(min(start, count), min(stop, count))
            start, stop = max(0, start - count), max(0, stop - count)

    return Rows(lambda: sum(part.count() for part in parts), read)


def _parquet(file: Path, separator: str) -> Rows:
    def read(start: int, stop: int) -> Numbered:
        index = 0
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                low, high = max(start - index, 0), min(stop - index, batch.num_rows)
                for offset, row in enumerate(batch.slice(low, max(high - low, 0)).to_pylist(), start=low):
                    yield f"{file.name}[row {index + offset}]", row
                index += batch.num_rows
                if index >= stop:
                    return

    return Rows(lambda: int(pyarrow.parquet.read_metadata(file).num_rows), read)


def _jsonl(file: Path, separator: str) -> Rows:
    def lines() -> Numbered:
        with file.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{file.name}:{number}", line

    def decode(source: str, line: str) -> Any:
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            return BadRow(source, "broken JSON", f"{error.msg} at column {error.colno}")

    return _streamed(lines, decode)


def _json(file: Path, separator: str) -> Rows:
    """A list of rows, or one under "data"; a file that is JSON lines after all is read as such."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _jsonl(file, separator)
        found = f"broken JSON: {error.msg} at column {error.colno}"
        raise DataError(f"{file.name}:{error.lineno}: {found}; correct the file") from error
    rows = tree.get("data") if isinstance(tree, dict) else tree
    if not isinstance(rows, list):
        found = f"the keys {', '.join(tree)}" if isinstance(tree, dict) else f"a {type(tree).__name__}"
        raise DataError(f'{file.name} holds {found}; give a list of rows, or one under the key "data"')
    return _listed(file.name, rows)


def _csv(file: Path, separator: str) -> Rows:
    def records() -> Numbered:
        csv.field_size_limit(sys.maxsize)
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for index, row in enumerate(csv.DictReader(stream, strict=True)):
                yield f"{file.name}[row {index}]", row

    def decode(source: str, row: dict[str | None, Any]) -> Any:
        extra = row.pop(None, None)
        return BadRow(source, "broken CSV", f"{len(extra)} fields too many") if extra else row

    return _streamed(records, decode)


def _txt(file: Path, separator: str) -> Rows:
    text = file.read_text(encoding="utf-8-sig")
    if separator == "auto":
        pieces = text.split("<|endoftext|>") if "<|endoftext|>" in text else re.split(r"\n\s*\n", text)
    else:
        pieces = text.split(separator)
    return _listed(file.name, [{"text": piece} for piece in pieces if piece.strip()])


# In a folder, only files of the first of these endings that occurs are read.
READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".parquet": _parquet,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".txt": _txt,
}


# ---------------------------------------------------------------- sources


def find_rows(path: str, subset: str | None, split: tuple[str, str], separator: str, seed: int, test: int = 0) -> Rows:
    """The rows of one split of a source; `split` is (name, the name if that is empty).

    test  how many rows the laboratory keeps apart as its split `final`
    """
    if path == LABORATORY:
        return _choose(_laboratory(seed, test, subset), split, path)
    local = Path(path).expanduser()
    if local.is_file():
        if subset:
            raise ConfigError(f'data.subset "{subset}" is for a folder or a hub id, and {path} is a file')
        return _choose({"train": _file(local, separator)}, split, local.name)
    if local.is_dir():
        return _choose(_folder(local, subset, separator), split, local.name)
    looks_local = path.startswith(("./", "../", "/", "~")) or local.suffix.lower() in READERS
    if looks_local or not _HUB_ID.fullmatch(path):
        raise DataError(f"{path} does not exist; {_beside(local)}")
    return _hub(path, subset, split[0] or split[1])


def _choose(splits: dict[str, Rows], split: tuple[str, str], where: str) -> Rows:
    name, default = split
    if not name:
        name = next(iter(splits)) if len(splits) == 1 else default
    if name not in splits:
        raise DataError(f'{where} has no split "{name}"; {nearest(name, splits)}')
    return splits[name]


def _beside(path: Path) -> str:
    """What to say of a path that does not exist: the nearest name in its folder."""
    if not path.parent.is_dir():
        return f"nor does its folder {path.parent}; correct the path"
    match = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f'did you mean "{path.with_name(match[0])}"?' if match else "nothing like it lies beside it"


def _laboratory(seed: int, test: int, subset: str | None) -> dict[str, Rows]:
    from sparring.laboratory import world

    if subset == "preferences":
        from sparring.laboratory import planted

        pairs, others = planted.split(seed, test=test)
        splits = {"train": _listed(LABORATORY, pairs), "test": _listed(f"{LABORATORY} test", others)}
        return splits | ({"final": _listed(f"{LABORATORY} final", planted.test_pairs(test))} if test else {})
    if subset not in (None, "noisy"):
        raise ConfigError(
            f'data.subset "{subset}" is not known in the laboratory; give noisy or preferences, or leave it out'
        )
    train, held = world.rows(seed, test=test, noisy=subset == "noisy")
    splits = {"train": _listed(LABORATORY, train), "test": _listed(f"{LABORATORY} test", held)}
    if test:
        splits["final"] = _listed(f"{LABORATORY} final", world.test_rows(test))
    return splits


def _file(file: Path, separator: str) -> Rows:
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f'{file.name} ends in "{file.suffix}"; known endings: {", ".join(READERS)}')
    return reader(file, separator)


def _folder(folder: Path, subset: str | None, separator: str) -> dict[str, Rows]:
    """The splits of a folder: saved by `datasets`, or data files named after their splits."""
    if subset:
        folder = _subfolder(folder, subset)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        import datasets

        saved = datasets.load_from_disk(str(folder))
        parts = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return {str(name): _listed(f"{folder.name}/{name}", rows) for name, rows in parts.items()}
    files = _split_files(folder)
    if len(files) == 1 and not any(_USUAL_SPLIT.match(name) for name in files):
        files = {"train": next(iter(files.values()))}  # one file of any name
    return {name: _chained([_file(shard, separator) for shard in shards]) for name, shards in files.items()}


def _subfolder(folder: Path, subset: str) -> Path:
    for candidate in (folder / subset, folder / "data" / subset):
        if candidate.is_dir():
            return candidate
    known = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    raise DataError(f'{folder.name} has no subset "{subset}" (data.subset); {nearest(subset, known)}')


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Data files by split, shards in order: train_sft-00000-of-00002.parquet, test.jsonl, train/0.csv."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    paths = [path for path in paths if "/." not in f"/{path.relative_to(folder).as_posix()}"]
    endings = {path.suffix.lower() for path in paths}
    ending = next((known for known in READERS if known in endings), None)
    if ending is None:
        raise DataError(f"{folder.name} holds no data file; known endings: {', '.join(READERS)}")
    splits: dict[str, list[Path]] = {}
    homes: dict[str, set[Path]] = {}
    for path in (path for path in paths if path.suffix.lower() == ending):
        shard = path.stem.isdigit() and path.parent != folder
        name = path.parent.name if shard else _SHARD.sub("", path.stem)
        splits.setdefault(name, []).append(path)
        homes.setdefault(name, set()).add(path.parent.parent if shard else path.parent)
    for name, places in homes.items():
        if len(places) > 1:
            subsets = ", ".join(sorted(place.name for place in places))
            found = f'{folder.name} has the split "{name}" in several folders'
            raise DataError(f"{found}; set data.subset to one of {subsets}")
    return splits


def _hub(path: str, subset: str | None, split: str) -> Rows:
    import datasets

    try:
        return _listed(path, datasets.load_dataset(path, subset, split=split))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        said = one_line(error)
        known = re.search(r"Should be one of \[(.*?)\]", said)
        if known:
            names = re.findall(r"[\w.-]+", known[1])
            said = f'it has no split "{split}"; {nearest(split, names)}'
        raise DataError(
            f'"{path}" is no local file or folder, and could not be had from the hub: {said} '
            "(a local path begins with ./; data.subset and data.split choose what is loaded)"
        ) from error
