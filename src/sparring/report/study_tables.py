"""A study's tables, as text for the page and report.md, and unrounded as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparring.report.records import Row, number, pretty, text
from sparring.report.sheets import sheet
from sparring.report.study import BUDGETS, Arm, Study, Yardstick, estimate
from sparring.report.tables import MISSING, Cell, Column, Line, count, duration, fixed
from sparring.report.tested import plain, ranged

_BUDGET_NAMES = {"steps": "steps", "tokens": "tokens", "flops": "FLOPs", "seconds": "time"}
_WRITE = {"steps": count, "tokens": count, "flops": count, "seconds": duration}


def comparisons(study: Study) -> tuple[list[str], list[list[str]]]:
    """The primary metric against each arm that was compared with: difference, p, Holm's p, and the words."""
    rows = []
    others = dict.fromkeys([study.reference, *(other for arm in study.arms for other in arm.against)])
    for other in others:
        for arm in study.arms:
            row = arm.against.get(other, {}).get(study.primary.key)
            if row is None or other == arm.name:
                continue
            p = [chance(number(row, key)) for key in ("p", "holm")]
            rows.append([arm.label, study.label(other), _signed(row), *p, pretty(text(row.get("words")))])
    return ["arm", "against", f"Δ {study.primary.label} [95 %]", "p", "p (Holm)", "in words"], rows


def brief_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """For the terminal: every arm's primary metric, what was chosen for it, and its difference to the reference."""
    key = study.primary.key
    rows = []
    for arm in study.arms:
        row = arm.against.get(study.reference, {}).get(key)
        chosen = f"{text(arm.grid.get('key')).split('.')[-1]} {_value(arm.grid.get('chosen'))}" if arm.grid else MISSING
        mean = _cell(arm.values.get(key), study.primary, False).figure
        told = [MISSING, MISSING] if row is None else [_signed(row), chance(number(row, "holm"))]
        rows.append([arm.label, chosen, mean, *told])
    name = study.primary.label
    return ["arm", "chosen", name, f"Δ {name} to {study.label(study.reference)} [95 %]", "p (Holm)"], rows


def measures(study: Study, against: str = "") -> tuple[list[Column], list[Line]]:
    """A line per metric and a column per arm: values, or with `against` the differences to that arm."""
    arms = [arm for arm in study.arms if not against or arm.name != against]
    if study.pairs and against:  # along an axis an arm is compared with some others only
        arms = [arm for arm in arms if against in arm.against]
    roles = {study.target: "target", study.reference: "reference"}
    heads = [Column(arm.label, roles.get(arm.name, ""), lambda row: Cell("")) for arm in arms]
    lines = []
    for key, metric in study.metrics.items():
        rows = [(arm.against.get(against, {}) if against else arm.values).get(key) for arm in arms]
        if any(estimate(row) for row in rows):
            cells = tuple(_cell(row, metric, bool(against)) for row in rows)
            lines.append(Line(key, metric.label, cells, key == study.primary.key, metric.meaning))
    return heads, lines


def budgets(study: Study) -> tuple[list[Column], list[Line]]:
    """A line per arm: the four budgets of self-play, and with fine-tuning; the matched one is marked."""
    heads = [
        Column(f"{name}{' ★ matched' if key == study.match else ''}", "", lambda row: Cell(""))
        for key, name in _BUDGET_NAMES.items()
    ]
    lines = []
    for arm in study.arms:
        if arm.budget or arm.whole:
            cells = tuple(_spent(arm, key) for key in _BUDGET_NAMES)
            lines.append(Line(arm.name, arm.label, cells, arm.name == study.target))
    return heads, lines


def grids(study: Study) -> tuple[list[str], list[list[str]]]:
    """What was tried for each arm, and what was chosen on validation data."""
    rows = []
    for arm in study.arms:
        tried = arm.grid.get("values")
        if not isinstance(tried, list) or not tried:
            continue
        judged = arm.grid.get("validation")
        marks = judged if isinstance(judged, list) and len(judged) == len(tried) else [None] * len(tried)
        said = [
            f"{_value(value)}{_mark(mark)}{' ★' * (value == arm.grid.get('chosen'))}"
            for value, mark in zip(tried, marks, strict=True)
        ]
        chosen = arm.grid.get("chosen")
        key = text(arm.grid.get("key"))
        rows.append([arm.label, key, MISSING if chosen is None else _value(chosen), " · ".join(said)])
    return ["arm", "setting", "chosen", f"tried: {study.primary.label} on validation data"], rows


def runs(study: Study) -> tuple[list[str], list[list[str]]]:
    """A row per run: arm, seed, the player handed over, and its primary metric; the last cell is its folder."""
    rows = []
    for arm in study.arms:
        for run in arm.runs:
            player = pretty(text(run.get("label") or run.get("player")))
            back = ", rolled back" if run.get("rolled_back") is True else ""
            values = run.get("values")
            value = number(values, study.primary.key) if isinstance(values, dict) else None
            rows.append([arm.label, text(run.get("seed")), f"{player}{back}", plain(value), text(run.get("folder"))])
    return ["arm", "seed", "player", study.primary.label, "folder"], rows


def rolled_back(study: Study) -> str:
    """How often later iterations were worse, so that the run went back; empty if never."""
    said = []
    for arm in study.arms:
        times = sum(run.get("rolled_back") is True for run in arm.runs)
        if times:
            said.append(f"{arm.label} {times} of {len(arm.runs)}")
    return f"Runs in which later iterations did not improve and were rolled back: {', '.join(said)}." if said else ""


def chance(p: float | None) -> str:
    """A p-value."""
    return MISSING if p is None else "< 0.001" if p < 0.001 else fixed(p, 3)


def sheets(study: Study) -> dict[str, str]:
    """Every table as CSV with unrounded numbers: file name → content."""
    arms: list[Row] = []
    gaps: list[Row] = []
    spent: list[Row] = []
    made: list[Row] = []
    for arm in study.arms:
        for key in study.metrics:
            found = {"arm": arm.name, "metric": key, **arm.values.get(key, {})}
            arms.append(found | {f"last_{name}": value for name, value in arm.last.get(key, {}).items()})
            gaps += [
                {"arm": arm.name, "against": other, "metric": key, **held[key]}
                for other, held in arm.against.items()
                if key in held
            ]
        row = {"arm": arm.name, **{key: arm.budget.get(key) for key in BUDGETS}}
        spent.append(row | {f"whole_{key}": arm.whole.get(key) for key in BUDGETS})
        made += [{"arm": arm.name, **run, "warnings": "; ".join(_sentences(run))} for run in arm.runs]
    return {
        "arms.csv": sheet(arms, ("arm", "metric", "mean", "low", "high")),
        "differences.csv": sheet(gaps, ("arm", "against", "metric", "mean", "low", "high", "p", "holm", "words")),
        "budgets.csv": sheet(spent, ("arm", *BUDGETS)),
        "runs.csv": sheet(made, ("arm", "seed", "folder", "player", "rolled_back")),
    }


def warned(study: Study) -> list[str]:
    """The study's own warnings, then those of its runs, equal ones of several seeds once."""
    found: dict[tuple[str, str], list[str]] = {}
    for arm in study.arms:
        for run in arm.runs:
            for said in _sentences(run):
                found.setdefault((arm.label, said), []).append(text(run.get("seed")))
    own = [
        f"{label}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}: {said}" for (label, said), seeds in found.items()
    ]
    return list(dict.fromkeys([*study.lines("warnings"), *own]))


def _sentences(run: Row) -> list[str]:
    found = run.get("warnings")
    return [pretty(text(line)) for line in found] if isinstance(found, list) else []


def _cell(row: Row | None, metric: Yardstick, signed: bool) -> Cell:
    found = estimate(row)
    if found is None:
        return Cell(MISSING)
    mean, low, high = found
    mark = ""
    if signed and metric.better and low is not None and high is not None and not low <= 0 <= high:
        mark = " better" if (high < 0) == (metric.better == "lower") else " worse"
    return Cell(f"{plain(mean, signed)}{mark}", ranged(low, high, signed))


def _signed(row: Row) -> str:
    found = estimate(row)
    return MISSING if found is None else f"{plain(found[0], True)} {ranged(*found[1:], sign=True)}".strip()


def _spent(arm: Arm, key: str) -> Cell:
    own, whole = number(arm.budget, key), number(arm.whole, key)
    return Cell(_WRITE[key](own), "" if whole is None else f"({_WRITE[key](whole)})")


def _mark(judged: Any) -> str:
    """What validation data said of a value that was tried."""
    return f": {plain(float(judged))}" if isinstance(judged, (int, float)) else ""


def _value(value: Any) -> str:
    """A setting's value as it is typed."""
    return f"{value:g}" if isinstance(value, float) else text(value)


def labelled(rows: Sequence[tuple[str, Any]]) -> str:
    """ "selfplay.anchor=0, selfplay.lr=0.0002"."""
    return ", ".join(f"{text(name)}={_value(value)}" for name, value in rows)
