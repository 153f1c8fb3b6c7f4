"""A study's report, from its folder alone: report.html, report.md and tables/*.csv.

The page is one file, as a run's. A link in it leads only to the report of a run that lies in the study's own folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from sparring.errors import RunError
from sparring.report import study_tables as tables
from sparring.report.duels import Browser, of_study, study_cards
from sparring.report.frame import pictures, render, replace
from sparring.report.markdown import fenced, inline, lined, table
from sparring.report.plots import draw
from sparring.report.records import number, pretty, read_run, text
from sparring.report.study import Study, read_study
from sparring.report.study_costs import cost_rows, costs_csv, draw_costs, measured_how
from sparring.report.study_plots import draw_study
from sparring.report.svg import Plot

__all__ = ["write_study"]

Pairs = list[tuple[str, str]]
GENERATION = "Generation is counted. First: self-play; then, in brackets: with fine-tuning."


def write_study(folder: Path) -> Path:
    """Write report.html, report.md and tables/*.csv of a study; return report.html's path.

    Works on an unfinished study and says so. Each file is replaced whole. RunError if study.json is
    missing or cannot be read.
    """
    study = read_study(folder)
    (folder / "tables").mkdir(exist_ok=True)
    sheets = {**tables.sheets(study), **({"costs.csv": costs_csv(study)} if study.pairs else {})}
    for name, content in sheets.items():
        replace(folder / "tables" / name, content)
    replace(folder / "report.md", _markdown(study))
    return replace(folder / "report.html", _html(study))


def _html(study: Study) -> str:
    found = study.facts.get("duels")
    browser = of_study(found if isinstance(found, list) else [], study.labels, study.target, study.reference)
    course_of, course = _course(study)
    header, rows = tables.runs(study)
    return render(
        "study.html",
        study=study,
        finished=study.finished,
        verdict=_verdict(study),
        notes=study.lines("notes"),
        facts=_facts(study),
        plots=pictures([*draw_costs(study), *draw_study(study)]),
        costs=cost_rows(study),
        measured_how=measured_how(study),
        comparisons=tables.comparisons(study),
        family=study.lines("family"),
        arms=_arms(study),
        warnings=tables.warned(study),
        rolled_back=tables.rolled_back(study),
        budgets=tables.budgets(study),
        matched=_matched(study),
        measures=tables.measures(study),
        gaps=tables.measures(study, study.reference) if study.reference in study.labels else ([], []),
        reference=study.label(study.reference),
        target=study.label(study.target) or "the target",
        grids=tables.grids(study),
        run_header=header,
        runs=rows,
        run_links=[_link(study.folder, row[-1]) for row in rows],
        course_of=course_of,
        course=pictures(course),
        browser=browser,
        few=_few(browser),
        again=_again(study),
        config=_yaml(study),
    )


def _few(browser: Browser | None) -> list[dict[str, Any]]:
    return study_cards(browser) if browser else []


def _markdown(study: Study) -> str:
    parts = [f"# {inline(study.name)}", f"**{inline(_verdict(study))}**"]
    parts += [inline(note) for note in study.lines("notes")]
    parts += [table(["what", "value"], [list(pair) for pair in _facts(study)])]
    if study.pairs:
        parts += ["## Quality and costs", table(*cost_rows(study)), inline(measured_how(study))]
    parts += ["## The arms", table(*tables.comparisons(study))]
    if arms := _arms(study):
        rows = [f"{arm['label']}: {arm['what']} {arm['settings']}".strip() for arm in arms]
        parts.append("\n".join(f"- {inline(row)}" for row in rows))
    found = tables.warned(study)
    parts += ["## Warnings", "\n".join(f"- {inline(line)}" for line in found) if found else "None."]
    parts += [inline(back)] if (back := tables.rolled_back(study)) else []
    parts += ["## Budget", lined(*tables.budgets(study), "arm", ""), inline(_matched(study))]
    parts += ["## All metrics", lined(*tables.measures(study), "metric", "")]
    if study.reference in study.labels:
        parts.append(f"### Differences to {inline(study.label(study.reference))}")
        parts.append(lined(*tables.measures(study, study.reference), "metric", ""))
    parts += ["## Learning rates", table(*tables.grids(study))]
    parts += ["## Runs", table(*tables.runs(study))]
    parts += ["## How to make it again", table(["what", "value"], [list(pair) for pair in _again(study)])]
    if config := _yaml(study):
        parts.append(fenced(config, "yaml"))
    return "\n\n".join(parts) + "\n"


def _verdict(study: Study) -> str:
    said = pretty(study.said("headline").strip())
    if study.finished:
        return said or "This study is finished, but holds no verdict."
    measured = sum(bool(arm.values) for arm in study.arms)
    return f"This study is unfinished: {measured} of {len(study.arms)} arms have been measured. {said}".strip()


def _facts(study: Study) -> Pairs:
    """What was compared, on what, and by which rule, all declared before the study ran."""
    seeds = study.facts.get("seeds")
    smallest = number(study.facts, "smallest")
    pairs = [
        ("primary metric", ", ".join(part for part in (study.primary.label, study.primary.meaning) if part)),
        ("target", "" if study.pairs else study.label(study.target)),
        ("reference", study.label(study.reference)),
        ("axis", text(study.part("axis").get("key"))),
        ("matched budget", "FLOPs" if study.match == "flops" else study.match),
        ("seeds", ", ".join(text(seed) for seed in seeds) if isinstance(seeds, list) else ""),
        ("test prompts", study.said("test_prompts")),
        ("smallest difference that matters", "" if smallest is None else f"{smallest:g}"),
    ]
    return [(name, value) for name, value in pairs if value]


def _arms(study: Study) -> list[dict[str, str]]:
    """Label, role, one sentence, and settings of each arm."""
    roles = {study.target: "target", study.reference: "reference"}
    return [
        {
            "label": arm.label,
            "role": roles.get(arm.name, ""),
            "what": arm.what,
            "settings": tables.labelled(list(arm.settings.items())),
        }
        for arm in study.arms
    ]


def _matched(study: Study) -> str:
    if study.pairs:
        return f"No budget was made equal. {GENERATION}"
    name = {"flops": "FLOPs", "seconds": "time"}.get(study.match, study.match)
    rule = f"{name} were made equal to the target's; " if study.match else "It is not said which budget was matched; "
    return f"{rule}the others are what it took. {GENERATION}"


def _course(study: Study) -> tuple[str, list[Plot]]:
    """Of which run the plots are, and the plots of the main job: the target's first run, if it is here."""
    arm = next((arm for arm in study.arms if arm.name == study.target), None)
    for run in arm.runs if arm else ():
        folder = _inside(study.folder, text(run.get("folder")))
        if folder is None:
            continue
        try:
            plots = draw(read_run(folder))
        except RunError:  # damaged: the study's own numbers do not need it, and another seed's may do
            continue
        if plots:
            return f"Seed {text(run.get('seed'))}, validation prompts; the run's own report says more.", plots
    return "", []


def _inside(folder: Path, name: str) -> Path | None:
    """A run folder by its name in study.json; None if it is not there, or not in the study's folder."""
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    return folder / name if (folder / name).is_dir() else None


def _link(folder: Path, name: str) -> str:
    found = _inside(folder, name)
    there = found is not None and (found / "report.html").is_file()
    return f"{quote(name)}/report.html" if there else ""


def _again(study: Study) -> Pairs:
    pairs = [("command", study.said("command"))]
    pairs += [
        (key, ", ".join(f"{text(name)} {text(value)}" for name, value in study.part(key).items()))
        for key in ("versions", "hardware")
    ]
    return [(name, value) for name, value in pairs if value]


def _yaml(study: Study) -> str:
    config = study.part("config")
    return text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)) if config else ""
