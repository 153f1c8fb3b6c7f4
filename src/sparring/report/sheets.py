"""The CSV files beside the report: unrounded numbers, one row per player and one per phase."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from sparring.report.records import Row, Run, text
from sparring.report.tables import kind


def scores_csv(run: Run) -> str:
    """One row per player with unrounded numbers; nested measures as `nll_difference_mean`, `exact_kl`."""
    return sheet(run.scores.values(), ("player", "label", "nll", "nll_low", "nll_high"))


def phases_csv(run: Run) -> str:
    """One row per finished phase with unrounded numbers."""
    rows = ({**row, "kind": kind(phase)} for phase, row in run.phases.items())
    return sheet(rows, ("phase", "kind", "seconds", "tokens", "flops"))


def sheet(rows: Iterable[Row], first: Sequence[str]) -> str:
    """Rows as CSV: the columns of `first`, then all others by name; nested values as `outer_inner`."""
    flat = [_flat(row) for row in rows]
    rest = sorted({key for row in flat for key in row} - set(first) - {"event"})
    made = io.StringIO()
    writer = csv.DictWriter(made, [*first, *rest], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return made.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {text(f"{key}_{inner}"): text(held) for inner, held in value.items()}
        else:
            flat[text(key)] = text(value)
    return flat
