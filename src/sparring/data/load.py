"""From what `data` names to training and held-out conversations.

Three steps: find the rows (a file, a folder, the hub, the laboratory), read them in their format,
and hold prompts out. A prompt is never on both sides. Rows are read lazily; only the conversations
are kept in memory.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow

from sparring.config import DataConfig
from sparring.data.comparisons import PREFERENCES, without_ties
from sparring.data.formats import FORMATS, choose_format, renamed
from sparring.data.messages import Conversation
from sparring.data.sources import LABORATORY, find_rows, one_line
from sparring.data.splits import bound, parse_split
from sparring.data.values import BadRow, Row
from sparring.errors import DataError

LABORATORY_PROMPTS = 1000
_LOOKED_AT = 100  # rows whose columns decide the format


@dataclass(frozen=True, slots=True)
class Loaded:
    """The data of a run.

    counts       rows = "bad: <reason>"… + leaked + train + eval + "over eval_limit" + test + "over test_limit"
    description  one line for people
    fingerprint  sha256 (hex) over the content of train, eval and test, in order; holds no paths
    test         for the last measurement, which chooses nothing; mostly empty
    bad          of preferences: each row that was left out, with its place and what is wrong with it
    compared     whether rows are preference pairs
    """

    train: list[Conversation]
    eval: list[Conversation]
    counts: dict[str, int]
    description: str
    fingerprint: str
    test: list[Conversation]
    bad: list[str] = field(default_factory=list)
    compared: bool = False


def load(config: DataConfig, seed: int, preferences: bool = False) -> Loaded:
    """Read, check and divide the data that `config` names. preferences: rows compare two answers (comparisons.py).

    Held-out data are `eval` / `eval_split`, or the laboratory's own; else `eval_size` of train's
    distinct prompts (at most `eval_limit`), chosen by a hash of seed and prompt, so that row order does not matter. Of
    separate held-out data, every prompt is removed from train (`leaked`). `subset` applies to `eval`
    only if that is the same source. Test data are found in the same way, before the held-out ones, and do not
    depend on the seed. Raises ConfigError for a key, DataError for a file, column or row.
    """
    counts = Counter(rows=0, leaked=0)
    bad: list[str] = []
    read = partial(_conversations, config, seed=seed, counts=counts, preferences=preferences, named=bad)
    train, about = read(config.train, ("split", config.split, "train"))
    train, test, test_about = _test(config, train, about, read, counts)
    tested = {_prompt(one) for one in test}
    if config.eval or config.eval_split or config.train == LABORATORY:
        found, held_about = read(config.eval or config.train, ("eval_split", config.eval_split or "", "test"))
        held = [one for one in found if _prompt(one) not in tested]
        counts["leaked"] += len(found) - len(held)
        if not held:
            raise DataError(f"every held-out prompt of {held_about} is also a test prompt; give other data.test")
        train = _without(train, held, about, held_about, counts)
    else:
        prompts = _held_out(train, config, seed, about)
        held = [one for one in train if _prompt(one) in prompts]
        train = [one for one in train if _prompt(one) not in prompts]
        held_about = "prompts cut from it"
    used = _limited(held, config.eval_limit, seed)
    counts.update({"train": len(train), "eval": len(used), "over eval_limit": len(held) - len(used)})
    description = f"{about}: {len(train)} to train on; {held_about}: {len(used)} held out"
    if test:
        kept = _limited(test, config.test_limit, 0)
        counts.update({"test": len(kept), "over test_limit": len(test) - len(kept)})
        test = kept
        description += f"; {test_about}: {len(test)} for the test"
    return Loaded(train, used, dict(counts), description, _fingerprint(train, used, test), test, bad, preferences)


def load_all(config: DataConfig) -> tuple[list[Conversation], dict[str, int], list[str]]:
    """(every preference pair of `data.train`, counts, each row that was left out and why); nothing is held out."""
    counts, bad = Counter(rows=0), list[str]()
    split = ("split", config.split, "train")
    made, _ = _conversations(config, config.train, split, seed=0, counts=counts, preferences=True, named=bad)
    return made, dict(counts), bad


def columns_of(config: DataConfig, seed: int) -> set[str]:
    """The columns of the first rows of `data.train`, of which none may be a row at all."""
    with _readable(_where(config.train)):
        _, numbered = _selected(config, config.train, ("split", config.split, "train"), seed)
        return {column for _, raw in islice(numbered, _LOOKED_AT) if isinstance(raw, dict) for column in raw}


def count_prompts(config: DataConfig, seed: int, preferences: bool = False) -> int:
    """How many distinct prompts `data.train` holds. preferences: as in `load`."""
    counts: Counter[str] = Counter()
    split = ("split", config.split, "train")
    found, _ = _conversations(config, config.train, split, seed=seed, counts=counts, preferences=preferences, named=[])
    return len({_prompt(one) for one in found})


def _without(
    train: list[Conversation], held: list[Conversation], about: str, held_about: str, counts: Counter[str]
) -> list[Conversation]:
    """Training rows whose prompts are not held out."""
    prompts = {_prompt(one) for one in held}
    rest = [one for one in train if _prompt(one) not in prompts]
    counts["leaked"] += len(train) - len(rest)
    if not rest:
        raise DataError(f"every training prompt of {about} is also in {held_about}; give other data.eval")
    return rest


def _test(
    config: DataConfig, train: list[Conversation], about: str, read: Callable[..., Any], counts: Counter[str]
) -> tuple[list[Conversation], list[Conversation], str]:
    """(what is left to train on, test rows, where they come from)."""
    if config.test or config.test_split:
        test, test_about = read(config.test or config.train, ("test_split", config.test_split or "", "test"))
        return _without(train, test, about, test_about, counts), test, test_about
    if not config.test_size:
        return train, [], ""
    if config.train == LABORATORY:  # keeps them apart by itself
        test, test_about = read(config.train, ("test_split", "final", "final"))
        return train, test, "prompts kept apart"
    prompts = sorted({_prompt(one) for one in train}, key=lambda prompt: _rank("test", prompt))
    size = config.test_size
    count = max(1, round(size * len(prompts))) if size < 1 else int(size)
    if count > len(prompts) - 2:
        raise DataError(
            f"data.test_size {size:g} holds {count} of the {len(prompts)} distinct prompts of {about} back, which "
            "leaves too few to train on and to choose by; lower it, or give data.test"
        )
    chosen = set(prompts[:count])
    test = [one for one in train if _prompt(one) in chosen]
    return [one for one in train if _prompt(one) not in chosen], test, "others cut from it"


# ---------------------------------------------------------------- holding out


def _prompt(conversation: Conversation) -> str:
    """What makes two prompts the same: system and first user turn, but for white space and case."""
    first = [turn for turn in conversation.messages[:2] if turn.role != "assistant"]
    return "\n".join(f"{turn.role} {' '.join(turn.content.split()).casefold()}" for turn in first)


def _rank(seed: int | str, text: str) -> str:
    return hashlib.sha256(f"{seed} {text}".encode("utf-8", "surrogatepass")).hexdigest()


def _held_out(train: Iterable[Conversation], config: DataConfig, seed: int, about: str) -> set[str]:
    prompts = sorted({_prompt(one) for one in train}, key=lambda prompt: _rank(seed, prompt))
    size = config.eval_size
    count = min(config.eval_limit, max(1, round(size * len(prompts)))) if size < 1 else int(size)
    if len(prompts) == 1:
        raise DataError(
            f"{about} has one distinct prompt, and holding it out leaves none to train on; give more data, or data.eval"
        )
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
    whole = [conversation.chat, [[turn.role, turn.content] for turn in conversation.messages]]
    other = conversation.other
    return json.dumps(whole if other is None else [*whole, other.rejected, other.votes, other.tie])


def _fingerprint(train: list[Conversation], held: list[Conversation], test: list[Conversation]) -> str:
    digest = hashlib.sha256()
    for name, part in (("train", train), ("eval", held), ("test", test)):
        if name == "test" and not part:
            continue
        digest.update(f"{name}\n".encode())
        for conversation in part:
            digest.update(f"{_content(conversation)}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- reading


def _conversations(
    config: DataConfig,
    path: str,
    split: tuple[str, str, str],
    *,
    seed: int,
    counts: Counter[str],
    preferences: bool = False,
    named: list[str] | None = None,
) -> tuple[list[Conversation], str]:
    """The good rows of one source and its description; adds to `counts`, and to `named` what is wrong with others.

    split  (key, value, default)
    """
    where = _where(path)
    bad: Counter[str] = Counter()
    said: list[str] = [] if named is None else named
    made: list[Conversation] = []
    with _readable(where):
        total, numbered = _selected(config, path, split, seed)
        head = list(islice(numbered, _LOOKED_AT))
        if not total:
            raise DataError(f"{where} is empty: it holds no row; give a file with prompts and answers")
        if not head:
            raise DataError(f'{where}: "{split[1]}" (data.{split[0]}) selects none of its {total} rows')
        entry = choose_format(_columns(head), config, where, PREFERENCES if preferences else FORMATS)
        for source, raw in chain(head, numbered):
            counts["rows"] += 1
            try:
                row = renamed(_row(source, raw), config.columns)
                made.append(entry.parse(row, source, config))
            except BadRow as fault:
                if config.bad_rows == "error":
                    raise
                bad[f"bad: {fault.reason}"] += 1
                said.append(fault.said)
    counts.update(bad)
    if not made:
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.items())
        raise DataError(f"{where} holds no usable answer ({reasons}); see one with data.bad_rows: error")
    kind = " preferences" if preferences else ""
    return without_ties(made, config, counts, where), f"{where} as {entry.name}{kind}"


def _where(path: str) -> str:
    """A source as messages name it."""
    return Path(path).name if Path(path).expanduser().exists() else path


def _selected(
    config: DataConfig, path: str, split: tuple[str, str, str], seed: int
) -> tuple[int, Iterator[tuple[str, Any]]]:
    """(all rows of a split, those that its slice selects, numbered). split: as in `_conversations`."""
    key, value, default = split
    name, start, stop = parse_split(value, f"data.{key}")
    subset = config.subset if path == config.train else None
    apart = _kept_apart(config) if path == LABORATORY else 0
    rows = find_rows(path, subset, (name, default), config.separator, seed, apart)
    total = rows.count()
    first, last, _ = slice(bound(start, total), bound(stop, total)).indices(total)
    return total, rows.read(first, max(first, last))


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """What goes wrong in reading a source becomes a DataError that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 text (byte {error.start}: {error.object[error.start]:#04x}); save it as UTF-8"
        ) from error
    except (OSError, csv.Error, pyarrow.ArrowException) as error:
        raise DataError(f"{where} cannot be read: {one_line(error)}") from error


def _kept_apart(config: DataConfig) -> int:
    """How many prompts of the laboratory are for the test."""
    size = config.test_size
    return round(size * LABORATORY_PROMPTS) if size < 1 else int(size)


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
