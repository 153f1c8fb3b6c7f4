"""report.md: the verdict, warnings and tables of the page as plain Markdown, without the plots."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sparring.report.best_of import best_of_notes, best_of_table
from sparring.report.findings import headline_notes, verdict_of, warnings_of
from sparring.report.quantised import QUANTISED_HEADER, quantised_line, quantised_rows
from sparring.report.records import Run, read_answers
from sparring.report.tables import Column, Line, budget_rows, columns, result_lines
from sparring.report.tested import tested_lines, tested_notes

_SPECIAL = re.compile(r"([\\`*_\[\]|#~$])")


def markdown(run: Run, facts: Sequence[tuple[str, str]], again: Sequence[tuple[str, str]], config: str) -> str:
    """The whole file. `facts` (name, value) stand at its head; `again` and `config` (YAML) say how to make it again."""
    parts = [f"# {inline(run.name)}", f"**{inline(verdict_of(run))}**"]
    parts += [inline(note) for note in headline_notes(run)]
    parts += ["\n".join(f"- {name}: {inline(value)}" for name, value in facts)] if facts else []
    parts += ["## Results", _results(run)]
    parts += tested(run)
    if rows := quantised_rows(run):
        parts += ["## What quantising the base cost", inline(quantised_line(run)), table(QUANTISED_HEADER, rows)]
    found = warnings_of(run)
    parts += ["## Warnings", "\n".join(f"- {inline(line)}" for line in found) if found else "None."]
    parts += ["## Side by side", *_answers(run)]
    parts += ["## Budget", table(["phase", "time", "tokens", "FLOPs", "notes"], budget_rows(run))]
    parts += ["## How to make it again", table(["what", "value"], [list(pair) for pair in again])]
    if config:
        parts.append(fenced(config, "yaml"))
    return "\n\n".join(parts) + "\n"


def inline(said: str) -> str:
    """Text in one line in which nothing is Markdown or HTML."""
    plain = " ".join(said.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)


def fenced(said: str, language: str = "text") -> str:
    """A code block that its content cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", said)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{said.rstrip()}\n{fence}"


def _results(run: Run) -> str:
    return lined(columns(run), result_lines(run))


def tested(run: Run) -> list[str]:
    """The section about the test split, if there was a test."""
    shown, lines = tested_lines(run)
    if not lines:
        return []
    notes = " ".join(tested_notes(run) + best_of_notes(run))
    parts = ["## On the test split, which chose nothing", lined(shown, lines), *([inline(notes)] if notes else [])]
    header, rows = best_of_table(run)
    return [*parts, "### Quality against n", table(header, rows)] if rows else parts


def lined(shown: Sequence[Column], lines: Sequence[Line], first: str = "player", star: str = " ★") -> str:
    """A table of one line per player or arm; `star` marks the best."""
    rows = [[f"{line.label}{star}" if line.best else line.label, *(str(cell) for cell in line.cells)] for line in lines]
    return table([first, *(column.heading for column in shown)], rows)


def _answers(run: Run) -> list[str]:
    parts = []
    for index, row in enumerate(read_answers(run), start=1):
        parts += [f"### Prompt {index}", fenced(row.prompt), "Real answer:", fenced(row.real)]
        for player, (said, finish) in row.said.items():
            cut = ", cut at the length limit" if finish == "length" else ""
            parts += [f"{inline(run.label(player))}{cut}:", fenced(said)]
    return parts or ["No answers have been sampled yet."]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every cell is plain text."""
    if not rows:
        return "Nothing has been recorded yet."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell if cell == "---" else inline(cell) for cell in line) + " |" for line in lines
    )
