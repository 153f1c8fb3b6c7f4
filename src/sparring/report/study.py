"""What a study's folder says, read leniently: any key of study.json may be missing, the study unfinished."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.errors import RunError
from sparring.report.records import Row, number, pretty, text

BUDGETS = ("steps", "tokens", "flops", "seconds")


@dataclass(frozen=True, slots=True)
class Yardstick:
    """A metric of a study; better is "lower", "higher" or "" (neither)."""

    key: str
    label: str
    unit: str
    better: str

    @property
    def meaning(self) -> str:
        """ "nats per token; lower is better"."""
        return "; ".join(part for part in (self.unit, f"{self.better} is better" if self.better else "") if part)


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm: `values`, `last` and each of `against` hold rows by metric; `budget`, `whole` and `costs` numbers."""

    name: str
    label: str
    what: str
    settings: Row
    grid: Row
    values: dict[str, Row]
    last: dict[str, Row]
    against: dict[str, dict[str, Row]]
    budget: Row
    whole: Row
    costs: Row
    runs: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """A study: its facts as they lie in the file, and what of them is drawn and tabled."""

    folder: Path
    facts: Row = field(default_factory=dict)
    arms: tuple[Arm, ...] = ()
    metrics: dict[str, Yardstick] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return text(self.facts.get("name") or self.folder.resolve().name)

    @property
    def finished(self) -> bool:
        return self.facts.get("finished") is True

    @property
    def primary(self) -> Yardstick:
        key = self.said("primary") or "nll"
        return self.metrics.get(key) or Yardstick(key, key, "", "")

    @property
    def match(self) -> str:
        return self.said("match")

    @property
    def reference(self) -> str:
        return self.said("reference")

    @property
    def target(self) -> str:
        return self.said("target")

    @property
    def pairs(self) -> list[tuple[Arm, Arm]]:
        """Along an axis: fine-tuning alone and self-play of each value; else empty."""
        named = {arm.name: arm for arm in self.arms}
        pairs = [pair for pair in _list(self.part("axis"), "pairs") if isinstance(pair, list) and len(pair) == 2]
        known = [[named.get(text(name)) for name in pair] for pair in pairs]
        return [(one, two) for one, two in known if one is not None and two is not None]

    @property
    def labels(self) -> dict[str, str]:
        return {arm.name: arm.label for arm in self.arms}

    def label(self, name: str) -> str:
        """An arm's name as it is shown."""
        return self.labels.get(name, name)

    def said(self, key: str) -> str:
        """A fact as text; empty when it is missing or no plain value."""
        found = self.facts.get(key)
        return text(found) if isinstance(found, (str, int, float)) else ""

    def lines(self, key: str) -> list[str]:
        """A fact that is a list of sentences."""
        return [pretty(text(line)) for line in _list(self.facts, key)]

    def part(self, key: str) -> Row:
        """A fact that is an object."""
        return _object(self.facts, key)


def read_study(folder: Path) -> Study:
    """Read FOLDER/study.json; RunError if it is missing or no JSON object."""
    file = folder / "study.json"
    if not file.is_file():
        raise RunError(f"{folder} holds no study.json; give the folder of a study, which `sparring compare` makes")
    try:
        facts = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise RunError(f"{file} is not JSON; delete it and give the `sparring compare` command again") from error
    if not isinstance(facts, dict):
        raise RunError(f"{file} holds no object; delete it and give the `sparring compare` command again")
    arms = tuple(_arm(row) for row in _list(facts, "arms") if isinstance(row, dict) and row.get("name"))
    return Study(folder, facts, arms, _metrics(facts, arms))


def _arm(row: Row) -> Arm:
    name = text(row["name"])
    return Arm(
        name=name,
        label=pretty(text(row.get("label") or name)),
        what=pretty(text(row.get("what"))),
        settings=_object(row, "settings"),
        grid=_object(row, "grid"),
        values=_objects(row, "values"),
        last=_objects(row, "last"),
        against={text(other): _objects(_object(row, "against"), other) for other in _object(row, "against")},
        budget=_object(row, "budget"),
        whole=_object(row, "whole"),
        costs=_object(row, "costs"),
        runs=tuple(run for run in _list(row, "runs") if isinstance(run, dict)),
    )


def _metrics(facts: Row, arms: tuple[Arm, ...]) -> dict[str, Yardstick]:
    """The metrics that are described, then those that only have numbers."""
    found = {}
    for key, row in _objects(facts, "metrics").items():
        better = text(row.get("better"))
        better = better if better in ("lower", "higher") else ""
        found[key] = Yardstick(key, pretty(text(row.get("label") or key)), text(row.get("unit")), better)
    for key in (key for arm in arms for key in arm.values):
        found.setdefault(key, Yardstick(key, key, "", ""))
    return found


def estimate(row: Row | None) -> tuple[float, float | None, float | None] | None:
    """(mean, low, high) of a number with its interval; low and high are None where there is none."""
    mean = number(row or {}, "mean")
    return None if mean is None else (mean, number(row or {}, "low"), number(row or {}, "high"))


def per_seed(arm: Arm, reference: Arm, metric: str) -> list[float]:
    """The arm's number less the reference's of the same seed, for each seed that both have."""
    theirs = {text(run.get("seed")): number(_object(run, "values"), metric) for run in reference.runs}
    found = []
    for run in arm.runs:
        mine, other = number(_object(run, "values"), metric), theirs.get(text(run.get("seed")))
        if mine is not None and other is not None:
            found.append(mine - other)
    return found


def _object(row: Row, key: str) -> Row:
    found = row.get(key)
    return found if isinstance(found, dict) else {}


def _objects(row: Row, key: str) -> dict[str, Row]:
    return {text(name): held for name, held in _object(row, key).items() if isinstance(held, dict)}


def _list(row: Row, key: str) -> list[Any]:
    found = row.get(key)
    return found if isinstance(found, list) else []
