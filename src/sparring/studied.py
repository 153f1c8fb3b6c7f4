"""From the runs of a study to one table: means and paired differences with intervals, budgets, words; study.json.

Reads run folders alone, and loads no model. The unit is the test prompt; S seeds, P prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparring.allowance import spent, spent_on_play
from sparring.arms import Arm
from sparring.config import CompareConfig, Config
from sparring.evaluation.metrics import METRICS, Metric, columns
from sparring.evaluation.paired import CLAIM, Difference, compare, holm, mcnemar, mean_interval
from sparring.evaluation.verdicts import headline, judgement
from sparring.files import read_json, write_atomic
from sparring.report.findings import warnings_of
from sparring.report.records import read_run
from sparring.report.study_page import write_study
from sparring.testrows import Measured, Rows, check_alike, matrices, measured

DUELS = 200
APART = 0.05  # share by which budgets may differ before it is said
UNITS = ("steps", "tokens", "flops", "seconds")


@dataclass(frozen=True, slots=True)
class Ran:
    """An arm's runs: the value chosen from its grid, the grid's results on held-out data, a folder for each seed."""

    arm: Arm
    chosen: Any
    validation: list[float | None]
    folders: list[Path]


def bring_together(
    folder: Path, config: Config, asked: CompareConfig, ran: Sequence[Ran], history: list[dict[str, Any]], command: str
) -> None:
    """Write study.json, and from it the page, report.md and tables."""
    rows = {one.arm.name: measured(one.folders) for one in ran}
    check_alike([folder for one in ran for folder in one.folders], [r for one in ran for r in rows[one.arm.name].best])
    differences = {
        against: {one.arm.name: _differences(rows[one.arm.name], rows[against]) for one in ran}
        for against in dict.fromkeys((asked.reference, "sft"))
    }
    adjusted = _family(asked, differences[asked.reference])
    labels = {one.arm.name: one.arm.label for one in ran}
    words = _Words(asked, labels, adjusted)
    arms = [_arm(folder, words, one, rows, differences) for one in ran]
    lock = read_run(ran[0].folders[0]).lock
    content = {
        "name": config.name,
        "finished": True,
        "primary": asked.primary,
        "match": asked.match,
        "seeds": list(asked.seeds),
        "target": asked.target,
        "reference": asked.reference,
        "smallest": asked.smallest,
        "test_prompts": len({row["prompt"] for row in rows[asked.target].best[0]}),
        "headline": words.headline(arms, differences[asked.reference]),
        "notes": _notes(asked, ran, history),
        "warnings": _warnings(asked, ran, arms),
        "family": [f"{name} vs {asked.reference}" for name in adjusted],
        "command": command,
        "config": config.model_dump(mode="json"),
        "versions": lock.get("versions", {}),
        "hardware": lock.get("hardware", {}),
        "metrics": {name: {"label": m.label, "unit": m.unit, "better": m.better} for name, m in METRICS.items()},
        "arms": arms,
        "duels": _duels(asked, rows),
    }
    write_atomic(folder / "study.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_study(folder)


# ---------------------------------------------------------------- numbers


def _values(rows: Sequence[Rows], facts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every metric's mean with its interval; of a whole set, the mean over seeds."""
    found: dict[str, dict[str, Any]] = {}
    for name, metric in METRICS.items():
        if metric.per == "set":
            values = [fact.get(metric.key) for fact in facts]
            if values and all(isinstance(value, int | float) for value in values):
                found[name] = {"mean": float(np.mean([float(v) for v in values if v is not None]))}
        elif (both := matrices(metric, rows)) is not None:
            mean, low, high = mean_interval(*both)
            found[name] = {"mean": mean, "low": low, "high": high}
    return found


def _differences(mine: Measured, theirs: Measured) -> dict[str, Difference]:
    """Paired differences of every metric that both arms have a number for on every prompt."""
    found = {}
    for name, metric in METRICS.items():
        a, b = matrices(metric, mine.best), matrices(metric, theirs.best)
        if a is not None and b is not None and metric.per != "set":
            found[name] = _bounded(compare(a[0], b[0], a[1], better=metric.better), metric)
    return found


def _family(asked: CompareConfig, found: Mapping[str, Mapping[str, Difference]]) -> dict[str, float]:
    """Holm's p of every arm against the reference on the primary metric: the family that was declared."""
    family = {}
    for name, of_metric in found.items():
        p = of_metric[asked.primary].p if asked.primary in of_metric else None
        if name != asked.reference and p is not None:
            family[name] = p
    return holm(family)


def _bounded(found: Difference, metric: Metric) -> Difference:
    """Where no prompt showed any difference in a share, 3/P: what as many prompts can exclude (the rule of three)."""
    if metric.unit != "share" or not found.mean == found.low == found.high == 0:
        return found
    return replace(found, low=-3 / found.prompts, high=3 / found.prompts)


def _exact_match_p(mine: Measured, theirs: Measured) -> float | None:
    """McNemar's p for greedy exact match; None where it was not measured."""
    a, b = (matrices(METRICS["match_greedy"], one.best) for one in (mine, theirs))
    if a is None or b is None or (a[1] != 1).any():
        return None
    return mcnemar(a[0], b[0])


@dataclass(frozen=True, slots=True)
class _Words:
    """What is said of a difference. `adjusted` holds Holm's p of each arm against the reference."""

    asked: CompareConfig
    labels: Mapping[str, str]
    adjusted: Mapping[str, float]

    def headline(self, arms: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, Difference]]) -> str:
        """The verdict: target against reference on the primary metric."""
        asked, name = self.asked, self.asked.primary
        difference = found[asked.target].get(name)
        if difference is None:
            return f"{METRICS[name].label} was not measured for both {asked.target} and {asked.reference}: no verdict."
        means = {arm["label"]: arm["values"][name]["mean"] for arm in arms if name in arm["values"]}
        target, reference = self.labels[asked.target], self.labels[asked.reference]
        holm_p, many = self.adjusted.get(asked.target), len(self.adjusted)
        return headline(METRICS[name], means, target, reference, difference, holm_p, asked.smallest, many)

    def of(self, arm: str, against: str, name: str, found: Difference) -> dict[str, Any]:
        """A difference as study.json keeps it. Only the primary metric against the reference is in the family."""
        primary = name == self.asked.primary
        holm_p = self.adjusted.get(arm) if primary and against == self.asked.reference else None
        smallest = self.asked.smallest if primary else None
        names = (self.labels[arm], self.labels[against])
        many = len(self.adjusted) if holm_p is not None else None
        return {
            "mean": found.mean,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "holm": holm_p,
            "words": judgement(METRICS[name], found, holm_p, smallest, names, many),
        }


# ---------------------------------------------------------------- an arm


def _arm(
    folder: Path,
    words: _Words,
    ran: Ran,
    measured: Mapping[str, Measured],
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]],
) -> dict[str, Any]:
    arm, mine = ran.arm, measured[ran.arm.name]
    seeds = words.asked.seeds
    runs = [_run(folder, path, seed, rows) for path, seed, rows in zip(ran.folders, seeds, mine.best, strict=True)]
    against = {}
    for other, of_arm in differences.items():
        if other != arm.name:
            against[other] = {name: words.of(arm.name, other, name, one) for name, one in of_arm[arm.name].items()}
            exact = _exact_match_p(mine, measured[other])
            if exact is not None:
                against[other]["match_greedy"]["mcnemar"] = exact
    grid = {"key": arm.key, "values": arm.values, "validation": ran.validation, "chosen": ran.chosen}
    return {
        "name": arm.name,
        "label": arm.label,
        "what": arm.what,
        "settings": dict(arm.settings),
        "grid": grid if arm.values else None,
        "values": _values(mine.best, mine.facts),
        "last": _values(mine.last, []),
        "against": against,
        "budget": _mean([run["budget"] for run in runs]),
        "whole": _mean([run["whole"] for run in runs]),
        "runs": runs,
    }


def _run(study: Path, folder: Path, seed: int, rows: Rows) -> dict[str, Any]:
    best = read_json(folder / "best" / "best.json")
    record = read_run(folder)
    play = spent_on_play(folder, len(record.iterations))
    start = spent(folder / "sft")
    values = {}
    for name, metric in METRICS.items():
        both = columns(metric, rows)
        if both is not None:
            values[name] = sum(both[0]) / sum(both[1])
    return {
        "seed": seed,
        "folder": folder.relative_to(study).as_posix(),
        "player": best["player"],
        "label": best["label"],
        "rolled_back": best["rolled_back"],
        "values": values,
        "budget": play,
        "whole": {unit: play[unit] + start[unit] for unit in UNITS},
        "warnings": warnings_of(record),
    }


def _mean(budgets: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {unit: sum(budget[unit] for budget in budgets) / len(budgets) for unit in UNITS}


# ---------------------------------------------------------------- words


def _notes(asked: CompareConfig, ran: Sequence[Ran], history: list[dict[str, Any]]) -> list[str]:
    unit = {"flops": "FLOPs"}.get(asked.match, asked.match)
    label = next(one.arm.label for one in ran if one.arm.name == asked.target)
    notes = [
        f"Every arm spends the same {unit} on self-play, or on what stands in its place, as {label} did with the same "
        "seed; judging is not counted.",
    ]
    notes.append(
        f"Only the comparisons of {METRICS[asked.primary].label} with the reference are corrected for their number; "
        "all others are shown as they are, and among many some come out by chance."
    )
    tried = [one.arm for one in ran if len(one.arm.values) > 1]
    if tried:
        seeds = asked.seeds[: asked.tune_seeds]
        notes.append(
            f"For {len(tried)} arms a value was chosen on held-out prompts (seed{'s' * (len(seeds) > 1)} "
            f"{', '.join(map(str, seeds))}), never on the test prompts."
        )
    if len(history) > 1:
        notes.append(
            f"Seeds or arms were added {len(history) - 1} time{'s' * (len(history) > 2)} after results had been seen; "
            "the first time it was asked for "
            f"{', '.join(history[0]['arms'])} with seeds {', '.join(map(str, history[0]['seeds']))}."
        )
    return notes


def _warnings(asked: CompareConfig, ran: Sequence[Ran], arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the study itself; its runs' warnings stand beside them."""
    found = []
    if asked.match == "seconds" and asked.jobs > 1:
        found.append(f"{asked.jobs} runs shared the machine while seconds were made equal: their clocks are rough")
    spent = {arm["name"]: arm["budget"][asked.match] for arm in arms}
    goal = spent[asked.target]
    for one in ran:
        if one.arm.matched and goal and abs(spent[one.arm.name] / goal - 1) > APART:
            why = "an iteration of one of them was stopped early, or a step cannot be cut"
            if asked.match == "seconds":
                why = "seconds are a forecast, or " + why
            found.append(f"{one.arm.label} spent {spent[one.arm.name] / goal:.0%} of the target's {asked.match}: {why}")
    if len(asked.seeds) < CLAIM:
        few = "one seed" if len(asked.seeds) == 1 else f"{len(asked.seeds)} seeds"
        found.append(f"{few}: a claim needs {CLAIM} or more")
    return found


def _duels(asked: CompareConfig, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """What target and reference said to the same test prompts, with the first seed."""
    names = (asked.reference, asked.target)
    sides = [{row["key"]: row for row in measured[name].best[0]} for name in names]
    duels = []
    for key in [key for key in sides[0] if key in sides[1]][:DUELS]:
        rows = [side[key] for side in sides]
        said = {
            name: {"answer": row.get("answer"), "nll": row.get("nll"), "tokens": row.get("tokens")}
            for name, row in zip(names, rows, strict=True)
        }
        duels.append({"prompt": rows[0].get("prompt"), "real": rows[0].get("real"), "arms": said})
    return duels
