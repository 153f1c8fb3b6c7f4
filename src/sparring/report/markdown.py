"""report.md: the verdict, warnings and tables of the page as plain Markdown, without the plots."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sparring.report.findings import headline_notes, verdict_of, warnings_of
from sparring.report.records import Run, read_answers
from sparring.report.tables import budget_rows, columns, result_lines

_SPECIAL = re.compile(r"([\\`*_\[\]|#~$])")


def markdown(run: Run, again: Sequence[tuple[str, str]], config: str) -> str:
    """The whole file. `again` (name, value) and `config` (YAML) say how to make the run again."""
    parts = [f"# {inline(run.name)}", f"**{inline(verdict_of(run))}**"]
    parts += [inline(note) for note in headline_notes(run)]
    parts += ["## Results", _results(run)]
    found = warnings_of(run)
    parts += ["## Warnings", "\n".join(f"- {inline(line)}" for line in found) if found else "None."]
    parts += ["## Side by side", *_answers(run)]
    parts += ["## Budget", _table(["phase", "time", "tokens", "FLOPs", "notes"], budget_rows(run))]
    parts += ["## How to make it again", _table(["what", "value"], [list(pair) for pair in again])]
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
    header = ["player", *(column.heading for column in columns(run))]
    rows = [
        [f"{line.label} ★" if line.best else line.label, *(str(cell) for cell in line.cells)]
        for line in result_lines(run)
    ]
    return _table(header, rows)


def _answers(run: Run) -> list[str]:
    parts = []
    for index, row in enumerate(read_answers(run), start=1):
        parts += [f"### Prompt {index}", fenced(row.prompt), "Real answer:", fenced(row.real)]
        for player, (said, finish) in row.said.items():
            cut = ", cut at the length limit" if finish == "length" else ""
            parts += [f"{inline(run.label(player))}{cut}:", fenced(said)]
    return parts or ["No answers have been sampled yet."]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Nothing has been recorded yet."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell if cell == "---" else inline(cell) for cell in line) + " |" for line in lines
    )
