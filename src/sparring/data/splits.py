"""`train[10%:20%]`: the name of a split, and a slice of it."""

from __future__ import annotations

import re

from sparring.errors import ConfigError

_SPLIT = re.compile(r"([\w.-]*)(?:\[([^:\[\]]*):([^:\[\]]*)\])?")
_BOUND = re.compile(r"-?\d+|-?\d+(\.\d+)?%")


def parse_split(text: str, key: str) -> tuple[str, str, str]:
    """`name[start:stop]` as its three parts, any of which may be empty."""
    match = _SPLIT.fullmatch(text.strip())
    bounds = [part.strip() for part in match.groups(default="")] if match else []
    if not match or any(part and not _BOUND.fullmatch(part) for part in bounds[1:]):
        raise ConfigError(
            f'{key}: "{text}" is not a split; give a name, a slice, or both, as in train, [:2000], '
            "train[10%:20%], train[-100:]"
        )
    return bounds[0], bounds[1], bounds[2]


def bound(text: str, total: int) -> int | None:
    """A part of a slice as a row number of `total` rows; None if it is empty."""
    if text.endswith("%"):
        return round(float(text[:-1]) / 100 * total)
    return int(text) if text else None
