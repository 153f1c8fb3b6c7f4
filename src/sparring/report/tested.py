"""What the test split said: a table of the players that were tested, on every yardstick that was measured."""

from __future__ import annotations

from collections.abc import Callable

from sparring.evaluation.metrics import METRICS, Metric, columns
from sparring.evaluation.statistics import Interval, difference, per_token
from sparring.report.records import Row, Run, number, pretty, prompts, read_lines, text
from sparring.report.tables import Cell, Column, Line, fixed, interval

RANGED = ("nll", "match", "valid", "reward")  # shown with an interval over prompts
NAMES = {"best": "", "last": " (last)"}


def plain(value: float | None, sign: bool = False) -> str:
    """A number of any yardstick: fewer digits the larger it is."""
    return fixed(value, _digits(value), sign)


def ranged(low: float | None, high: float | None, sign: bool = False) -> str:
    """An interval of any yardstick, both ends with the same digits; empty where there is none."""
    return interval(low, high, min(_digits(low), _digits(high)), sign)


def _digits(value: float | None) -> int:
    return 4 if value is None or abs(value) < 10 else 2 if abs(value) < 1000 else 0


def tested_lines(run: Run) -> tuple[list[Column], list[Line]]:
    """Columns (one per yardstick that has a number) and a line per tested player; no lines without a test."""
    measured = {name for row in run.tests.values() for name in row if number(row, name) is not None}
    shown = {name: metric for name, metric in METRICS.items() if name in measured}
    units = [f"{metric.unit}{f'; {metric.better} is better' * bool(metric.better)}" for metric in shown.values()]
    headed = [
        Column(pretty(metric.label), unit.removeprefix("; "), _cell(name))
        for (name, metric), unit in zip(shown.items(), units, strict=True)
    ]
    lines = []
    for which, row in run.tests.items():
        rows = _rows(run, which)
        cells = [column.cell(row) for column in headed]
        for place, (name, metric) in enumerate(shown.items()):
            if name in RANGED and (found := _interval(metric, rows)):
                cells[place] = Cell(cells[place].figure, interval(*found))
        label = run.label(text(row.get("player"))) + NAMES.get(which, f" ({which})")
        lines.append(Line(text(row.get("player")), label, tuple(cells), which == "best"))
    return headed, lines


def tested_notes(run: Run) -> list[str]:
    """What stands under the table: how many prompts, and whether the last player differs from the chosen one."""
    if not run.tests:
        return []
    counts = [n for which, row in run.tests.items() if (n := len({*_prompts(_rows(run, which))}) or prompts(row))]
    notes = [f"{min(counts):.0f} prompts."] if counts else []
    scorer = text(run.tests.get("best", {}).get("scorer"))
    notes += [f"Sampled answers were scored by {scorer}."] if scorer and not run.best_of else []
    gap = gap_between(_rows(run, "last"), _rows(run, "best"))
    if gap is not None:
        last = run.label(text(run.tests["last"].get("player"))) if "last" in run.tests else "the last player"
        said = f"{fixed(gap['mean'], sign=True)} {interval(gap['low'], gap['high'], sign=True)}"
        notes.append(f"NLL of {last} less that of the chosen player, paired by prompt: {said}.")
    return notes


def gap_between(mine: list[Row], theirs: list[Row]) -> dict[str, float] | None:
    """Paired difference in NLL per token, mine less theirs; None if they are not the same prompts, or too few."""
    first, second = columns(METRICS["nll"], mine), columns(METRICS["nll"], theirs)
    if first is None or second is None or first[1] != second[1]:
        return None
    return difference([-x for x in first[0]], [-x for x in second[0]], [int(n) for n in first[1]], _prompts(mine))


def _cell(name: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(plain(number(row, name)))


def _interval(metric: Metric, rows: list[Row]) -> Interval | None:
    """95 % interval of a mean over the test prompts; of NLL, per token."""
    found = columns(metric, rows)
    return None if found is None else per_token([-x for x in found[0]], found[1], _prompts(rows))


def _prompts(rows: list[Row]) -> list[str]:
    return [text(row.get("prompt")) for row in rows]


def _rows(run: Run, which: str) -> list[Row]:
    """RUN/test/best.jsonl or last.jsonl; empty if it is not there or a row is no test row."""
    rows = list(read_lines(run.folder / "test" / f"{which}.jsonl"))
    whole = all("nll" in row and number(row, "tokens") for row in rows)
    return rows if whole else []
