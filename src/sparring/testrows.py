"""The test rows of a study's runs as tables: S seeds, P prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparring.errors import RunError
from sparring.evaluation.metrics import Metric, columns
from sparring.folder import METRICS, read_lines

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Measured:
    """An arm's test rows by seed: of the players chosen, and of the last ones; facts of the whole sets."""

    best: list[Rows]
    last: list[Rows]
    facts: list[dict[str, Any]]


def measured(folders: Sequence[Path]) -> Measured:
    best = [_rows(folder / "test" / "best.jsonl") for folder in folders]
    unfinished = next((folder for folder, rows in zip(folders, best, strict=True) if not rows), None)
    if unfinished is not None:
        raise RunError(f"{unfinished} has no test results; remove the folder, and the same command makes them again")
    last = [_rows(folder / "test" / "last.jsonl") or rows for folder, rows in zip(folders, best, strict=True)]
    facts = []
    for folder in folders:
        events = [event for event in read_lines(folder / "test" / METRICS) if event["event"] == "test"]
        facts.append(next((event for event in events if event["which"] == "best"), {}))
    return Measured(best, last, facts)


def check_alike(folders: Sequence[Path], rows: Sequence[Rows]) -> None:
    """All runs were tested on the same prompts and real answers, in the same order; else RunError."""
    wanted = [(row["real"], row["tokens"]) for row in rows[0]]
    for folder, one in zip(folders, rows, strict=True):
        asked = [(row["real"], row["tokens"]) for row in one]
        if asked != wanted:
            raise RunError(
                f"{folder} was tested on other prompts than {folders[0]} ({len(asked)} and {len(wanted)} rows), so "
                "they cannot be compared; no arm may change the data, the template or the lengths of the test"
            )


def _rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def matrices(metric: Metric, rows: Sequence[Rows]) -> tuple[Any, Any] | None:
    """Numbers, to be divided by weights, each [S, P]; None where a row has no number."""
    found = [columns(metric, one) for one in rows]
    if any(one is None for one in found):
        return None
    places: dict[str, int] = {}  # a prompt that has several rows is one unit
    index = [places.setdefault(row["prompt"], len(places)) for row in rows[0]]
    numbers, weights = np.array([one for one in found if one is not None]).swapaxes(0, 1)
    if len(places) == len(index):
        return numbers, weights
    belongs = np.eye(len(places))[index]  # [rows, P]: 1 where a row is of a prompt
    return numbers @ belongs, weights @ belongs
