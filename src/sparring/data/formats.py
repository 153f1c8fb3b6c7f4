"""Row formats: one row of somebody's file in, one Conversation out.

A format is a line in FORMATS: the columns it needs, and a function from a row to turns. What all
formats share (system messages, rendering, the checks on turns) is written once, in `Format.parse`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from sparring.config import DataConfig
from sparring.data.messages import Conversation, Message
from sparring.data.values import (
    ROLES,
    BadRow,
    Row,
    column_text,
    list_of,
    messages_of,
    needed,
    optional_text,
    shown,
    string_of,
)
from sparring.errors import ConfigError, DataError, nearest

Turns = tuple[list[Message], bool]  # the turns, and whether they are a chat

_HASH_MARKER = re.compile(r"###\s?(Human|User|Assistant):", re.IGNORECASE)
_LINE_MARKER = re.compile(r"^(Human|User|Assistant):", re.MULTILINE)
_DEFAULTS = DataConfig.model_validate({})


@dataclass(frozen=True, slots=True)
class Format:
    """A row format: the columns it needs, those it may use, and how its turns are read."""

    name: str
    required: tuple[str, ...]
    turns: Callable[[Row, str, DataConfig], Turns]
    optional: tuple[str, ...] = ("system",)

    @property
    def columns(self) -> set[str]:
        """Every column the format reads."""
        return {*self.required, *self.optional}

    def parse(self, row: Row, source: str, config: DataConfig = _DEFAULTS) -> Conversation:
        """The conversation of one row whose columns bear our names; `source` is for messages.

        `config` gives `opening` (text), `render` and `system`. Raises BadRow, a DataError that names
        the source and what was found there.
        """
        turns, chat = self.turns(row, source, config)
        if config.render != "auto":
            chat = config.render == "chat"
        if turns and turns[0].role != "system":
            own = optional_text(row, "system", source) if "system" in self.optional else ""
            system = own if own.strip() else (config.system or "") if chat else ""
            turns = [Message("system", system), *turns] if system.strip() else turns
        turns = _checked(turns, source)
        roles = [turn.role for turn in turns]
        if not chat and roles != ["user", "assistant"]:
            found = f"the turns are {', '.join(roles)}, and plain text is one user and one assistant turn"
            raise BadRow(source, "not plain text", f"{found} (data.render: chat takes them all)")
        return Conversation(tuple(turns), chat, source)


# ---------------------------------------------------------------- formats


def marked_turns(text: str) -> list[Message]:
    """The turns of a prompt written as one text, `### Human: … ### Assistant: …`; else an empty list.

    The text must start with a user's marker. Bare `Human:`, `User:` and `Assistant:` count at the
    start of a line, and only where both sides are marked. A last, empty `Assistant:` is the place
    of the answer, and is left out.
    """
    text = text.strip()
    for marker in (_HASH_MARKER, _LINE_MARKER):
        start = marker.match(text)
        if start is None or ROLES[start[1].lower()] != "user":
            continue
        pieces = marker.split(text)[1:]
        turns = [
            Message(ROLES[role.lower()], body.strip()) for role, body in zip(pieces[::2], pieces[1::2], strict=True)
        ]
        if marker is _LINE_MARKER and all(turn.role == "user" for turn in turns):
            continue
        return turns[:-1] if turns[-1] == Message("assistant", "") else turns
    return []


def _messages_format(column: str) -> Callable[[Row, str, DataConfig], Turns]:
    def turns(row: Row, source: str, config: DataConfig) -> Turns:
        return messages_of(needed(row, column, source), column, source), True

    return turns


def _sharegpt(row: Row, source: str, config: DataConfig) -> Turns:
    turns = messages_of(needed(row, "conversations", source), "conversations", source)
    chosen = row.get("chosen")
    if isinstance(chosen, str):
        turns.append(Message("assistant", chosen))
    elif chosen is not None:
        turns += messages_of(chosen if isinstance(chosen, list) else [chosen], "chosen", source)
    return turns, True


def asked_text(row: Row, source: str) -> str:
    """Instruction and input, where there is one, as one question."""
    asked = [column_text(row, "instruction", source), optional_text(row, "input", source)]
    return "\n\n".join(part for part in asked if part.strip())


def _alpaca(row: Row, source: str, config: DataConfig) -> Turns:
    turns: list[Message] = []
    for index, pair in enumerate(list_of(row.get("history") or [], "history", source)):
        where = f"history[{index}]"
        if len(list_of(pair, where, source)) != 2:
            raise BadRow(source, "wrong type", f"{where} holds {len(pair)} texts, and must hold two")
        turns.append(Message("user", string_of(pair[0], where, source)))
        turns.append(Message("assistant", string_of(pair[1], where, source)))
    turns.append(Message("user", asked_text(row, source)))
    turns.append(Message("assistant", column_text(row, "output", source)))
    return turns, True


def _asked(question: str, answer: str) -> Callable[[Row, str, DataConfig], Turns]:
    def turns(row: Row, source: str, config: DataConfig) -> Turns:
        prompt = column_text(row, question, source)
        before = marked_turns(prompt) or [Message("user", prompt)]
        return [*before, Message("assistant", column_text(row, answer, source))], True

    return turns


def _prompt_completion(row: Row, source: str, config: DataConfig) -> Turns:
    prompt, completion = needed(row, "prompt", source), needed(row, "completion", source)
    if not isinstance(prompt, list) and not isinstance(completion, list):
        turns, _ = _asked("prompt", "completion")(row, source, config)
        return turns, bool(marked_turns(prompt))
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    after = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    return messages_of(before, "prompt", source) + messages_of(after, "completion", source), True


def _document(row: Row, source: str, config: DataConfig) -> Turns:
    document = column_text(row, "text", source).strip()
    ends = [word.end() for word in re.finditer(r"\S+", document)]
    words = int(config.opening) if config.opening >= 1 else round(config.opening * len(ends))
    if config.opening < 1:
        words = max(1, min(words, len(ends) - 1))
    if words >= len(ends):
        found = f"{len(ends)} words, and the opening takes {words} (data.opening)"
        raise BadRow(source, "too short to cut", found)
    cut = ends[words - 1]
    return [Message("user", document[:cut]), Message("assistant", document[cut:])], False


FORMATS: dict[str, Format] = {
    "messages": Format("messages", ("messages",), _messages_format("messages")),
    "sharegpt": Format("sharegpt", ("conversations",), _sharegpt),
    "alpaca": Format("alpaca", ("instruction", "output"), _alpaca, ("input", "system")),
    "question_answer": Format("question_answer", ("question", "answer"), _asked("question", "answer")),
    "input_output": Format("question_answer", ("input", "output"), _asked("input", "output")),
    "prompt_completion": Format("prompt_completion", ("prompt", "completion"), _prompt_completion),
    "text": Format("text", ("text",), _document, ()),
    "spin": Format("spin", ("real",), _messages_format("real")),
}
CANONICAL = frozenset().union(*(entry.columns for entry in FORMATS.values()))


# ---------------------------------------------------------------- checks


def _checked(turns: list[Message], source: str) -> list[Message]:
    """The turns without a trailing user turn; BadRow unless they alternate and none is empty."""
    first = 1 if turns and turns[0].role == "system" else 0
    roles = [turn.role for turn in turns[first:]]
    if "assistant" not in roles:
        raise BadRow(source, "no assistant turn", f"the turns are {', '.join(roles) or 'none'}")
    if roles[0] != "user":
        raise BadRow(source, "first turn is not the user's", f"it is {roles[0]}'s")
    for number, (before, after) in enumerate(pairwise(roles), start=2):
        if after == "system":
            raise BadRow(source, "late system turn", f"turn {number} is system's, and only the first may be")
        if before == after:
            raise BadRow(source, "two turns of one role", f"turns {number - 1} and {number} are {after}'s")
    turns = turns[:-1] if roles[-1] == "user" else turns
    for turn in turns[first:]:
        if not turn.content.strip():
            reason = "empty answer" if turn.role == "assistant" else "empty prompt"
            raise BadRow(source, reason, f"the {turn.role} turn is {shown(turn.content)}")
    return turns


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row under our column names; `columns` is ours: theirs. A column of ours it hides is dropped."""
    if not columns:
        return row
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


class RowFormat(Protocol):
    """What every format is, whatever its rows hold."""

    @property
    def name(self) -> str:
        """As `data.format` names it."""

    @property
    def required(self) -> tuple[str, ...]:
        """The columns it cannot do without."""

    @property
    def columns(self) -> set[str]:
        """Every column it reads."""

    def parse(self, row: Row, source: str, config: DataConfig) -> Conversation:
        """The conversation of one row; BadRow if it cannot be used."""


def fits(found: set[str], config: DataConfig, table: Mapping[str, RowFormat]) -> bool:
    """Whether a file with the columns `found` is of one format in `table`."""
    try:
        choose_format(found, config, "", table)
    except (ConfigError, DataError):
        return False
    return True


def choose_format(
    found: set[str],
    config: DataConfig,
    where: str,
    table: Mapping[str, RowFormat] = FORMATS,
) -> RowFormat:
    """The format in `table` of a file with the columns `found` (the file's names), by `format` and `columns`.

    A format fits if its columns are there and it uses every mapped one. Of two that fit, the one that
    uses more of the columns wins, and `text` yields to any other. Raises ConfigError for a name in
    `columns` that is not ours, DataError for a column that the file lacks or if not one format fits.
    """
    canonical = frozenset[str]().union(*(entry.columns for entry in table.values()))
    names = {entry.name for entry in table.values()}
    if config.format not in ("auto", *names):
        raise ConfigError(
            f'data.format "{config.format}" is not for this; give auto, or one of {", ".join(sorted(names))}'
        )
    for ours, theirs in config.columns.items():
        if ours not in canonical:
            raise ConfigError(f'data.columns: "{ours}" is not known; {nearest(ours, canonical)}')
        if theirs not in found:
            lacks = f'{where} has no column "{theirs}" (data.columns.{ours})'
            raise DataError(f"{lacks}; {nearest(theirs, found)}")
    ours_found = set(renamed(dict.fromkeys(found), config.columns))
    known = [entry for entry in table.values() if config.format in ("auto", entry.name)]
    fit = [
        entry for entry in known if ours_found.issuperset(entry.required) and entry.columns.issuperset(config.columns)
    ]
    used = [entry.columns & ours_found for entry in fit]
    best = [entry for entry, mine in zip(fit, used, strict=True) if not any(mine < other for other in used)]
    if len(best) > 1:
        best = [entry for entry in best if entry.name != "text"]
    if len(best) == 1:
        return best[0]
    columns = f"{where} has the columns {', '.join(sorted(map(str, found))) or 'none'}"
    formats = "; ".join(f"{entry.name}: {', '.join(entry.required)}" for entry in known)
    if best:
        several = ", ".join(entry.name for entry in best)
        raise DataError(f"{columns}, which fit several formats; set data.format to one of {several}")
    given = f", with data.columns for {', '.join(config.columns)}," if config.columns else ""
    target = "no format" if config.format == "auto" else f"not the format {config.format}"
    raise DataError(f"{columns}, which{given} fit {target}; name them in data.columns (known: {formats})")
