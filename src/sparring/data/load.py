"""From what `data` names to training and held-out conversations.

Three steps: find the rows (a file, a folder, the hub, the laboratory), read them in their format,
and hold prompts out. A prompt is never on both sides. Rows are read lazily; only the conversations
are kept in memory.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sparring.config import DataConfig
from sparring.data.formats import BadRow, Row, choose_format, renamed
from sparring.data.messages import Conversation
from sparring.errors import ConfigError, DataError, nearest

LABORATORY = "laboratory"
Numbered = Iterator[tuple[str, Any]]  # "file:line" or "file[row]", and the row, or the BadRow it became

_SPLIT = re.compile(r"([\w.-]*)(?:\[([^:\[\]]*):([^:\[\]]*)\])?")
_BOUND = re.compile(r"-?\d+|-?\d+(\.\d+)?%")
_SHARD = re.compile(r"-\d+-of-\d+.*")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_USUAL_SPLIT = re.compile(r"train|test|val|dev|eval")
_LOOKED_AT = 100  # rows whose columns decide the format


@dataclass(frozen=True, slots=True)
class Loaded:
    """The data of a run.

    counts       rows = "bad: <reason>"… + leaked + train + eval + "over eval_limit"
    description  one line for people
    fingerprint  sha256 (hex) over the content of train and eval, in order; holds no paths
    """

    train: list[Conversation]
    eval: list[Conversation]
    counts: dict[str, int]
    description: str
    fingerprint: str


def load(config: DataConfig, seed: int) -> Loaded:
    """Read, check and divide the data that `config` names.

    Held-out data are `eval` / `eval_split`, or the laboratory's own; else `eval_size` of train's
    distinct prompts, chosen by a hash of seed and prompt, so that row order does not matter. Of
    separate held-out data, every prompt is removed from train (`leaked`). `subset` applies to `eval`
    only if that is the same source. Raises ConfigError for a key, DataError for a file, column or row.
    """
    counts = Counter(rows=0, leaked=0)
    train, about = _conversations(config, config.train, ("split", config.split, "train"), seed, counts)
    if config.eval or config.eval_split or config.train == LABORATORY:
        split = ("eval_split", config.eval_split or "", "test")
        held, held_about = _conversations(config, config.eval or config.train, split, seed, counts)
        prompts = {_prompt(one) for one in held}
        rest = [one for one in train if _prompt(one) not in prompts]
        counts["leaked"] = len(train) - len(rest)
        if not rest:
            raise DataError(f"every training prompt of {about} is also in {held_about}; give other data.eval")
    else:
        prompts = _held_out(train, config.eval_size, seed, about)
        held = [one for one in train if _prompt(one) in prompts]
        rest = [one for one in train if _prompt(one) not in prompts]
        held_about = "prompts cut from it"
    used = _limited(held, config.eval_limit, seed)
    counts.update({"train": len(rest), "eval": len(used), "over eval_limit": len(held) - len(used)})
    description = f"{about}: {len(rest)} to train on; {held_about}: {len(used)} held out"
    return Loaded(rest, used, dict(counts), description, _fingerprint(rest, used))


# ---------------------------------------------------------------- holding out


def _prompt(conversation: Conversation) -> str:
    """What makes two prompts the same: system and first user turn, but for white space and case."""
    first = [turn for turn in conversation.messages[:2] if turn.role != "assistant"]
    return "\n".join(f"{turn.role} {' '.join(turn.content.split()).casefold()}" for turn in first)


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed} {text}".encode("utf-8", "surrogatepass")).hexdigest()


def _held_out(train: Iterable[Conversation], size: float, seed: int, about: str) -> set[str]:
    prompts = sorted({_prompt(one) for one in train}, key=lambda prompt: _rank(seed, prompt))
    count = max(1, round(size * len(prompts))) if size < 1 else int(size)
    if count >= len(prompts):
        raise DataError(
            f"data.eval_size {size:g} holds {count} of the {len(prompts)} distinct prompts of {about} out, "
            "which leaves none to train on; lower it, or give data.eval"
        )
    return set(prompts[:count])


def _limited(held: list[Conversation], limit: int, seed: int) -> list[Conversation]:
    """The `limit` conversations of lowest hash, in the order they had."""
    ranked = sorted(range(len(held)), key=lambda index: _rank(seed, _content(held[index])))
    return [held[index] for index in sorted(ranked[:limit])]


def _content(conversation: Conversation) -> str:
    return json.dumps([conversation.chat, [[turn.role, turn.content] for turn in conversation.messages]])


def _fingerprint(train: Iterable[Conversation], held: Iterable[Conversation]) -> str:
    digest = hashlib.sha256()
    for name, part in (("train", train), ("eval", held)):
        digest.update(f"{name}\n".encode())
        for conversation in part:
            digest.update(f"{_content(conversation)}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- reading


def _conversations(
    config: DataConfig, path: str, split: tuple[str, str, str], seed: int, counts: Counter[str]
) -> tuple[list[Conversation], str]:
    """The good rows of one source and its description; adds to `counts`. `split` is (key, value, default)."""
    key, value, default = split
    name, start, stop = _parse_split(value, f"data.{key}")
    where = Path(path).name if Path(path).expanduser().exists() else path
    subset = config.subset if path == config.train else None
    bad: Counter[str] = Counter()
    made: list[Conversation] = []
    try:
        rows = _find(path, subset, (name, default), config.separator, seed)
        total = rows.count()
        first, last, _ = slice(_bound(start, total), _bound(stop, total)).indices(total)
        numbered = rows.read(first, max(first, last))
        head = list(islice(numbered, _LOOKED_AT))
        if not head:
            raise DataError(f'{where}: "{value}" (data.{key}) selects none of its {total} rows')
        entry = choose_format(_columns(head), config, where)
        for source, raw in chain(head, numbered):
            counts["rows"] += 1
            try:
                row = renamed(_row(source, raw), config.columns)
                made.append(entry.parse(row, source, config))
            except BadRow as fault:
                if config.bad_rows == "error":
                    raise
                bad[f"bad: {fault.reason}"] += 1
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        raise DataError(f"{where} cannot be read: {_one_line(error)}") from error
    counts.update(bad)
    if not made:
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.items())
        raise DataError(f"{where} holds no usable answer ({reasons}); see one with data.bad_rows: error")
    return made, f"{where} as {entry.name}"


def _row(source: str, raw: object) -> Row:
    if isinstance(raw, BadRow):
        raise raw
    if not isinstance(raw, dict):
        raise BadRow(source, "wrong type", f"the row is {json.dumps(raw)[:60]}, and must hold named columns")
    return raw


def _columns(head: list[tuple[str, Any]]) -> set[str]:
    """The columns of the first rows; if none of them is a row at all, what is wrong with the first."""
    rows = [raw for _, raw in head if isinstance(raw, dict)]
    return {column for row in rows for column in row} if rows else set(_row(*head[0]))


def _parse_split(text: str, key: str) -> tuple[str, str, str]:
    """`name[start:stop]` as its three parts, any of which may be empty."""
    match = _SPLIT.fullmatch(text.strip())
    bounds = [part.strip() for part in match.groups(default="")] if match else []
    if not match or any(part and not _BOUND.fullmatch(part) for part in bounds[1:]):
        raise ConfigError(
            f'{key}: "{text}" is not a split; give a name, a slice, or both, as in train, [:2000], '
            "train[10%:20%], train[-100:]"
        )
    return bounds[0], bounds[1], bounds[2]


def _bound(text: str, total: int) -> int | None:
    if text.endswith("%"):
        return round(float(text[:-1]) / 100 * total)
    return int(text) if text else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ---------------------------------------------------------------- files


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that are read when asked for: how many, and those from start to stop."""

    count: Callable[[], int]
    read: Callable[[int, int], Numbered]


def _listed(name: str, rows: Sequence[Any]) -> _Rows:
    return _Rows(
        lambda: len(rows),
        lambda start, stop: ((f"{name}[row {index}]", rows[index]) for index in range(start, stop)),
    )


def _streamed(items: Callable[[], Numbered], decode: Callable[[str, Any], Any]) -> _Rows:
    return _Rows(
        lambda: sum(1 for _ in items()),
        lambda start, stop: ((at, decode(at, item)) for at, item in islice(items(), start, stop)),
    )


def _chained(parts: Sequence[_Rows]) -> _Rows:
    def read(start: int, stop: int) -> Numbered:
        for part in parts:
            count = part.count()
            yield from part.read(min(start, count), min(stop, count))
            start, stop = max(0, start - count), max(0, stop - count)

    return _Rows(lambda: sum(part.count() for part in parts), read)


def _parquet(file: Path, separator: str) -> _Rows:
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

    return _Rows(lambda: int(pyarrow.parquet.read_metadata(file).num_rows), read)


def _jsonl(file: Path, separator: str) -> _Rows:
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


def _json(file: Path, separator: str) -> _Rows:
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


def _csv(file: Path, separator: str) -> _Rows:
    def records() -> Numbered:
        csv.field_size_limit(sys.maxsize)
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for index, row in enumerate(csv.DictReader(stream, strict=True)):
                yield f"{file.name}[row {index}]", row

    def decode(source: str, row: dict[str | None, Any]) -> Any:
        extra = row.pop(None, None)
        return BadRow(source, "broken CSV", f"{len(extra)} fields too many") if extra else row

    return _streamed(records, decode)


def _txt(file: Path, separator: str) -> _Rows:
    text = file.read_text(encoding="utf-8-sig")
    if separator == "auto":
        pieces = text.split("<|endoftext|>") if "<|endoftext|>" in text else re.split(r"\n\s*\n", text)
    else:
        pieces = text.split(separator)
    return _listed(file.name, [{"text": piece} for piece in pieces if piece.strip()])


# In a folder, only files of the first of these endings that occurs are read.
READERS: dict[str, Callable[[Path, str], _Rows]] = {
    ".parquet": _parquet,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".txt": _txt,
}


# ---------------------------------------------------------------- sources


def _find(path: str, subset: str | None, split: tuple[str, str], separator: str, seed: int) -> _Rows:
    """The rows of one split of a source; `split` is (name, the name if that is empty)."""
    if path == LABORATORY:
        return _choose(_laboratory(seed), split, path)
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


def _choose(splits: dict[str, _Rows], split: tuple[str, str], where: str) -> _Rows:
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


def _laboratory(seed: int) -> dict[str, _Rows]:
    from sparring.laboratory import world

    train, held = world.rows(seed)
    return {"train": _listed(LABORATORY, train), "test": _listed(f"{LABORATORY} test", held)}


def _file(file: Path, separator: str) -> _Rows:
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f'{file.name} ends in "{file.suffix}"; known endings: {", ".join(READERS)}')
    return reader(file, separator)


def _folder(folder: Path, subset: str | None, separator: str) -> dict[str, _Rows]:
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


def _hub(path: str, subset: str | None, split: str) -> _Rows:
    import datasets

    try:
        return _listed(path, datasets.load_dataset(path, subset, split=split))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        said = _one_line(error)
        known = re.search(r"Should be one of \[(.*?)\]", said)
        if known:
            names = re.findall(r"[\w.-]+", known[1])
            said = f'it has no split "{split}"; {nearest(split, names)}'
        raise DataError(
            f'"{path}" is no local file or folder, and could not be had from the hub: {said} '
            "(a local path begins with ./; data.subset and data.split choose what is loaded)"
        ) from error
