"""A run's report, from its folder alone: report.html, report.md and tables/*.csv.

The page is one file with one small script, for the duels, and no address to load anything from; every text
that came from data or a model is escaped. Writing it twice gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sparring.config_dpo import reference_of
from sparring.methods import METHODS
from sparring.report.best_of import best_of_csv, best_of_notes, best_of_table
from sparring.report.duels import cards, of_run
from sparring.report.findings import headline_notes, verdict, verdict_of, warnings_of
from sparring.report.frame import pictures, render, replace
from sparring.report.markdown import markdown
from sparring.report.plots import draw
from sparring.report.quantised import QUANTISED_HEADER, quantised_line, quantised_rows
from sparring.report.records import Run, read_answers, read_run, shown, text
from sparring.report.sheets import phases_csv, scores_csv
from sparring.report.tables import budget_rows, columns, duration, result_lines, result_rows
from sparring.report.tested import tested_lines, tested_notes

__all__ = ["result_rows", "verdict", "write_report"]


def write_report(run_folder: Path) -> Path:
    """Write report.html, report.md and tables/: scores.csv, phases.csv, best_of.csv; return report.html's path.

    Works on an unfinished run and says so. Each file is replaced whole. RunError if the folder does
    not exist, or its run.lock.yaml or best.json cannot be read.
    """
    run = read_run(run_folder)
    again, config = again_of(run), config_yaml(run)
    (run_folder / "tables").mkdir(exist_ok=True)
    replace(run_folder / "tables" / "scores.csv", scores_csv(run))
    replace(run_folder / "tables" / "phases.csv", phases_csv(run))
    if run.best_of:
        replace(run_folder / "tables" / "best_of.csv", best_of_csv(run))
    replace(run_folder / "report.md", markdown(run, facts_of(run), again, config))
    return replace(run_folder / "report.html", _html(run, again, config))


def _html(run: Run, again: list[tuple[str, str]], config: str) -> str:
    test_columns, test_lines = tested_lines(run)
    return render(
        "template.html",
        run=run,
        finished=run.finished,
        facts=facts_of(run),
        verdict=verdict_of(run),
        notes=headline_notes(run),
        columns=columns(run),
        lines=result_lines(run),
        warnings=warnings_of(run),
        plots=pictures(draw(run)),
        matches=_matches(run),
        answers=[cards(run, row) for row in read_answers(run)],
        browser=of_run(run),
        hushed=not shown(run),
        test_columns=test_columns,
        test_lines=test_lines,
        test_notes=tested_notes(run) + best_of_notes(run),
        best_of=best_of_table(run),
        quantised=quantised_rows(run),
        quantised_header=QUANTISED_HEADER,
        quantised_line=quantised_line(run),
        budget=budget_rows(run),
        again=again,
        config=config,
    )


def facts_of(run: Run) -> list[tuple[str, str]]:
    """The few facts under the title: base, data, method, hardware."""
    base, data, hardware = (_part(run, key) for key in ("base", "data", "hardware"))
    parameters = base.get("parameters")
    size = f", {parameters:,} parameters" if isinstance(parameters, int) else ""
    held = f", {text(base['quantised'])}" if base.get("quantised") else ""
    facts = [
        ("base", f"{text(base['name'])}{size}{held}" if base.get("name") else ""),
        ("data", _data_fact(data)),
        ("method", _method_fact(run)),
        ("reference", _reference(run)),
        ("device", text(hardware.get("device") or hardware.get("cpu"))),
        ("time", duration(_seconds(run)) if run.phases else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _reference(run: Run) -> str:
    """Of preference pairs: what the player is held against."""
    if not run.prefers:
        return ""
    start, base = run.config.get("start"), run.setting("model", "base")
    epochs = run.setting("sft", "epochs")
    said = reference_of(None if start is None else text(start), float(epochs or 0), text(base))
    return said.removeprefix("reference: ")


def _data_fact(data: dict[str, Any]) -> str:
    sizes = [f"{data[key]} {word}" for key, word in (("train", "train"), ("eval", "held out")) if data.get(key)]
    return text(" · ".join([str(data.get("description") or ""), *sizes]).strip(" ·"))


def _method_fact(run: Run) -> str:
    section = run.config.get("method")
    section = section if isinstance(section, dict) else {}
    row = METHODS.get(str(section.get("name")))
    said = row.settings.model_construct(**section).summary if row else text(section.get("name"))
    start = run.config.get("start")
    trained = run.phases.get("sft", {}).get("trainable") or run.phases.get("0/player", {}).get("trainable")
    size = f": {trained:,} trained parameters" if isinstance(trained, int) else ""
    return f"{said}, from {text(start)}{size}" if start else f"{said}{size}"


def _seconds(run: Run) -> float:
    found = (row.get("seconds") for row in run.phases.values())
    return float(sum(value for value in found if isinstance(value, (int, float))))


def _matches(run: Run) -> list[tuple[str, str]]:
    """(player, opponent) labels of every iteration: who learnt against whose answers."""
    pairs = [] if run.prefers else [(str(t), run.opponent(str(t))) for t in run.iterations]
    return [(run.label(player), run.label(opponent)) for player, opponent in pairs if opponent is not None]


def again_of(run: Run) -> list[tuple[str, str]]:
    """What is needed to make the run again, as (name, value)."""
    base, data = _part(run, "base"), _part(run, "data")
    versions = ", ".join(f"{text(name)} {text(value)}" for name, value in _part(run, "versions").items())
    hardware = ", ".join(f"{text(name)} {text(value)}" for name, value in _part(run, "hardware").items())
    counts = data.get("counts")
    counted = ", ".join(f"{text(k)} {text(v)}" for k, v in counts.items()) if isinstance(counts, dict) else ""
    command = run.lock.get("command") or (f"sparring run {run.name}.yaml" if run.lock else "")
    pairs = [
        ("command", text(command)),
        ("seed", text(run.lock.get("seed"))),
        ("base", " · ".join(text(base[key]) for key in ("name", "fingerprint") if base.get(key))),
        ("data", " · ".join(text(data[key]) for key in ("description", "fingerprint") if data.get(key))),
        ("rows", counted),
        ("versions", versions),
        ("hardware", hardware),
    ]
    return [(name, value) for name, value in pairs if value]


def config_yaml(run: Run) -> str:
    """The resolved config, as it may be saved and used; empty when it is unknown."""
    if not run.config:
        return ""
    return text(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100))


def _part(run: Run, key: str) -> dict[str, Any]:
    found = run.lock.get(key)
    return found if isinstance(found, dict) else {}
