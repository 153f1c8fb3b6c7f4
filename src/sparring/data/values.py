"""What stands in one column of one row: text, lists, turns; a BadRow where it is something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, final

from sparring.data.messages import Message, Role
from sparring.errors import DataError

Row = Mapping[str, Any]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}


@final
class BadRow(DataError):
    """One row that cannot be used; `reason` is the kind of fault, which `bad_rows: skip` counts by."""

    def __init__(self, source: str, reason: str, found: str) -> None:
        self.said = f"{source}: {reason}: {found}"
        super().__init__(f"{self.said}; correct the row, or set data.bad_rows: skip")
        self.reason = reason


def shown(value: object) -> str:
    """A value as a file would hold it, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def string_of(value: object, where: str, source: str) -> str:
    """A value that must be text; BadRow, naming `where` in the row, if it is none."""
    if not isinstance(value, str):
        raise BadRow(source, "wrong type", f"{where} is {shown(value)}, and must be text")
    return value


def needed(row: Row, column: str, source: str) -> Any:
    """A column's value; BadRow if the row has none."""
    if column not in row:
        raise BadRow(source, "missing column", f'no "{column}" among {", ".join(map(str, row))}')
    return row[column]


def column_text(row: Row, column: str, source: str) -> str:
    """A column's text; BadRow if there is none, or something else."""
    return string_of(needed(row, column, source), column, source)


def optional_text(row: Row, column: str, source: str) -> str:
    """A column's text, empty where there is none."""
    return "" if row.get(column) is None else column_text(row, column, source)


def list_of(value: object, where: str, source: str) -> list[Any]:
    """A value that must be a list; BadRow if it is none."""
    if not isinstance(value, list):
        raise BadRow(source, "wrong type", f"{where} is {shown(value)}, and must be a list")
    return value


def _content(value: object, where: str, source: str) -> str:
    """Text, or the joined text of a list of text parts."""
    if not isinstance(value, list):
        return string_of(value, where, source)
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise BadRow(source, "wrong type", f"{where} holds {shown(part)}, and only text parts are known")
    return "".join(string_of(part.get("text"), where, source) for part in value)


def _message(item: object, where: str, source: str) -> Message:
    """One turn, under the keys role and content or from and value."""
    if not isinstance(item, dict):
        raise BadRow(source, "wrong type", f"{where} is {shown(item)}, and must hold a role and a content")
    role = item.get("role") or item.get("from")
    if not isinstance(role, str) or role.lower() not in ROLES:
        known = f"known: {', '.join(ROLES)}"
        raise BadRow(source, "unknown role", f"{where} has the role {shown(role)} ({known})")
    content = item["content"] if "content" in item else item.get("value")
    return Message(ROLES[role.lower()], _content(content, f"{where}.content", source))


def messages_of(value: object, where: str, source: str) -> list[Message]:
    """A list of turns; BadRow, naming `where` in the row, if it is none."""
    items = list_of(value, where, source)
    return [_message(item, f"{where}[{index}]", source) for index, item in enumerate(items)]
