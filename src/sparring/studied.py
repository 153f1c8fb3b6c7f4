"""From the runs of a study to one table: means and paired differences with intervals, budgets, words; study.json.

Reads run folders alone, and loads no model. The unit is the test prompt; S seeds, P prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sparring.allowance import spent, spent_on_play
from sparring.arms import Ran, dotted
from sparring.config import CompareConfig, Config
from sparring.costs import costs_of, mean_costs
from sparring.evaluation.metrics import METRICS, Metric, columns
from sparring.evaluation.paired import Difference, compare, holm, mcnemar, mean_interval
from sparring.files import read_json, write_atomic
from sparring.report.findings import warnings_of
from sparring.report.records import read_run
from sparring.report.study_page import write_study
from sparring.testrows import Measured, Rows, check_alike, matrices, measured
from sparring.wording import Pair, Words, notes, warnings

DUELS = 200
UNITS = ("steps", "tokens", "flops", "seconds")


def bring_together(
    folder: Path, config: Config, asked: CompareConfig, ran: Sequence[Ran], history: list[dict[str, Any]], command: str
) -> None:
    """Write study.json, and from it the page, report.md and tables."""
    rows = {one.arm.name: measured(one.folders) for one in ran}
    check_alike([folder for one in ran for folder in one.folders], [r for one in ran for r in rows[one.arm.name].best])
    differences = {pair: _differences(*(rows[name] for name in pair)) for pair in _pairs(asked, ran)}
    adjusted = _family(asked, ran, differences)
    words = Words(asked, {one.arm.name: one.arm.label for one in ran}, adjusted)
    arms = [_arm(folder, words, one, rows, differences) for one in ran]
    primary = {pair: found[asked.metric] for pair, found in differences.items() if asked.metric in found}
    lock = read_run(ran[0].folders[0]).lock
    content = {
        "name": config.name,
        "finished": True,
        "primary": asked.metric,
        "match": asked.match if asked.axis is None else "",
        "seeds": list(asked.seeds),
        "target": asked.target,
        "reference": asked.reference,
        "axis": _axis(asked, ran),
        "smallest": asked.smallest,
        "test_prompts": len({row["prompt"] for row in rows[asked.target].best[0]}),
        "headline": words.headline(arms, primary),
        "notes": notes(asked, ran, arms, history),
        "warnings": warnings(asked, ran, arms),
        "family": [f"{name} vs {other}" for name, other in adjusted],
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
            if metric.unit == "share" and low is not None and high is not None:  # few seeds make wide intervals
                low, high = max(low, 0.0), min(high, 1.0)
            found[name] = {"mean": mean, "low": low, "high": high}
    return found


def _differences(mine: Measured, theirs: Measured) -> dict[str, Difference]:
    """Paired differences of every metric that both arms have a number for on every prompt."""
    found = {}
    for name, metric in METRICS.items():
        a, b = matrices(metric, mine.best), matrices(metric, theirs.best)
        if a is not None and b is not None and metric.per != "set":
            found[name] = _bounded(compare(a[0], b[0], a[1], better=metric.better), metric, (a, b))
    return found


def _pairs(asked: CompareConfig, ran: Sequence[Ran]) -> list[Pair]:
    """Which arm is compared with which: with the reference and SFT, or along an axis as the arms say.

    The best of n answers also with one answer of the same players, and with the best of n of the reference.
    """
    known, pairs = {one.arm.name for one in ran}, []
    for one in ran:
        arm = one.arm
        ranked = (arm.after, f"{asked.reference}-best-of-{arm.best_of}") if arm.best_of > 1 else ()
        others = (asked.reference, "sft", *ranked) if arm.against is None else arm.against
        pairs += [(arm.name, other) for other in others if other in known]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1]]


def _family(
    asked: CompareConfig, ran: Sequence[Ran], found: Mapping[Pair, Mapping[str, Difference]]
) -> dict[Pair, float]:
    """Holm's p on the primary metric of the comparisons that were declared: all along an axis, else the reference's."""
    own = {one.arm.name for one in ran if one.arm.against is not None}
    family = {}
    for pair, of_metric in found.items():
        p = of_metric[asked.metric].p if asked.metric in of_metric else None
        if p is not None and (pair[0] in own or pair[1] == asked.reference):
            family[pair] = p
    return holm(family)


def _axis(asked: CompareConfig, ran: Sequence[Ran]) -> dict[str, Any] | None:
    """The key, and (fine-tuning alone, self-play) of each of its values."""
    names = [one.arm.name for one in ran]
    if asked.axis is None:
        return None
    return {"key": asked.axis.key, "pairs": list(zip(names[::2], names[1::2], strict=True))}


def _bounded(found: Difference, metric: Metric, measured: Sequence[tuple[Any, Any]]) -> Difference:
    """Where no prompt showed any difference in a share, 3/P: what as many prompts can exclude (the rule of three).

    A scorer's means are shares where all of them are between 0 and 1. measured: as `matrices` gives them.
    """
    means = [numbers / weights for numbers, weights in measured]
    share = metric.unit == "share" or (metric.key == "reward" and all(((m >= 0) & (m <= 1)).all() for m in means))
    if not share or not found.mean == found.low == found.high == 0:
        return found
    return replace(found, low=-3 / found.prompts, high=3 / found.prompts)


def _exact_match_p(mine: Measured, theirs: Measured) -> float | None:
    """McNemar's p for greedy exact match; None where it was not measured."""
    a, b = (matrices(METRICS["match_greedy"], one.best) for one in (mine, theirs))
    if a is None or b is None or (a[1] != 1).any():
        return None
    return mcnemar(a[0], b[0])


# ---------------------------------------------------------------- an arm


def _arm(
    folder: Path,
    words: Words,
    ran: Ran,
    measured: Mapping[str, Measured],
    differences: Mapping[Pair, Mapping[str, Difference]],
) -> dict[str, Any]:
    arm, mine = ran.arm, measured[ran.arm.name]
    seeds = words.asked.seeds
    runs = [_run(folder, path, seed, rows) for path, seed, rows in zip(ran.folders, seeds, mine.best, strict=True)]
    against = {}
    for (name, other), found in differences.items():
        if name == arm.name:
            against[other] = {metric: words.of((name, other), metric, one) for metric, one in found.items()}
            exact = _exact_match_p(mine, measured[other])
            if exact is not None:
                against[other]["match_greedy"]["mcnemar"] = exact
    grid = {"key": arm.key, "values": arm.values, "validation": ran.validation, "chosen": ran.chosen}
    return {
        "name": arm.name,
        "label": arm.label,
        "what": arm.what,
        "settings": dotted(arm.settings),
        "best_of": arm.best_of,
        "grid": grid if arm.values else None,
        "values": _values(mine.best, mine.facts),
        "last": _values(mine.last, []),
        "against": against,
        "budget": _mean([run["budget"] for run in runs]),
        "whole": _mean([run["whole"] for run in runs]),
        "costs": mean_costs([run["costs"] for run in runs]),
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
        "costs": costs_of(record),
        "warnings": warnings_of(record),
    }


def _mean(budgets: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {unit: sum(budget[unit] for budget in budgets) / len(budgets) for unit in UNITS}


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
