"""A reward run's report, from its folder alone: report.html, report.md and tables/phases.csv."""

from __future__ import annotations

import json
from pathlib import Path

from sparring.report.frame import pictures, render, replace
from sparring.report.markdown import fenced, inline, table
from sparring.report.page import again_of, config_yaml, facts_of
from sparring.report.plot_reward import reliability_plot, training_plot
from sparring.report.records import Row, Run, pretty, read_run, text
from sparring.report.reward import headline, read_scores, reward_rows, warnings_of_reward
from sparring.report.sheets import phases_csv
from sparring.report.svg import drawing
from sparring.report.tables import budget_rows, fixed

SHOWN = 6  # pairs on the page
LONGEST = 2000  # characters of one text


def write_reward_report(folder: Path) -> Path:
    """Write report.html, report.md and tables/phases.csv, each replaced whole; returns report.html's path.

    Works on an unfinished run, and says so.
    """
    run, scores = read_run(folder), read_scores(folder)
    (folder / "tables").mkdir(exist_ok=True)
    replace(folder / "tables" / "phases.csv", phases_csv(run))
    replace(folder / "report.md", _markdown(run, scores))
    return replace(folder / "report.html", _html(run, scores))


def _html(run: Run, scores: Row) -> str:
    with drawing():
        drawn = [plot for plot in (reliability_plot(scores), training_plot(run, scores)) if plot is not None]
    return render(
        "reward.html",
        run=run,
        facts=facts_of(run),
        finished=bool(scores),
        verdict=headline(scores),
        notes=[],
        table=reward_rows(scores),
        warnings=warnings_of_reward(run, scores),
        plots=pictures(drawn),
        pairs=_pairs(run.folder),
        budget=(["phase", "time", "tokens", "FLOPs", "notes"], budget_rows(run)),
        again=again_of(run),
        config=config_yaml(run),
        browser=None,
    )


def _markdown(run: Run, scores: Row) -> str:
    found = warnings_of_reward(run, scores)
    parts = [f"# {inline(run.name)}", f"**{inline(headline(scores))}**"]
    parts += ["\n".join(f"- {name}: {inline(value)}" for name, value in facts_of(run))]
    parts += ["## Results", table(*reward_rows(scores))]
    parts += ["## Warnings", "\n".join(f"- {inline(line)}" for line in found) if found else "None."]
    parts += ["## Budget", table(["phase", "time", "tokens", "FLOPs", "notes"], budget_rows(run))]
    parts += ["## How to make it again", table(["what", "value"], [list(pair) for pair in again_of(run)])]
    if config := config_yaml(run):
        parts.append(fenced(config, "yaml"))
    return "\n\n".join(parts) + "\n"


def _pairs(folder: Path) -> list[Row]:
    """Pairs to look at: those that the model is surest of and has wrong, then those it has right."""
    path = folder / "reward-scores" / "pairs.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: row["chosen_reward"] - row["rejected_reward"])
    half = SHOWN // 2
    chosen = rows[:half] + (rows[-half:] if len(rows) > SHOWN else rows[half:])
    return [_shown(row) for row in chosen]


def _shown(row: Row) -> Row:
    gap = row["chosen_reward"] - row["rejected_reward"]
    cards = [
        {
            "title": side,
            "note": f"reward {fixed(row[f'{side}_reward'], 2, sign=True)}",
            "text": _cut(row[side]),
        }
        for side in ("chosen", "rejected")
    ]
    word = "right" if gap > 0 else "wrong" if gap < 0 else "tied"
    said = pretty(f"{word}, by {fixed(abs(gap), 2)}; {text(row['source'])}")
    return {"title": said, "prompt": _cut(row["prompt"]), "cards": cards}


def _cut(said: str) -> tuple[str, str]:
    """(what is seen, what is opened): a text as the page's macros take it."""
    said = text(said)[:LONGEST]
    return said[:600], said[600:]
