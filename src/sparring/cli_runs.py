"""What the verbs that make runs share: the config they are given, how a run is told, and how it ends."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sparring.config import Config

ConfigArgument = Annotated[
    str | None,
    typer.Argument(metavar="[CONFIG.yaml]", help="the config; without one, the embedded laboratory"),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[a.b=value …]", help="settings to change")]
JsonOption = Annotated[bool, typer.Option("--json", help="events as JSON lines, for machines")]


def follows() -> bool:
    """Whether this is one of several processes, and not the one that speaks."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


def given_config(
    config: str | None,
    overrides: list[str] | None,
    embedded: list[str] | None = None,
    default: Path | None = None,
) -> Config:
    """The config named on the command line; a first argument `a.b=value` belongs to the embedded default.

    embedded  settings that the embedded default has for this verb; default: its file, if it is another one
    """
    from sparring.configfile import read_config
    from sparring.laboratory import default_config

    changes = list(overrides or [])
    if config is not None and _is_override(config):
        changes.insert(0, config)
        config = None
    if config:
        return read_config(config, changes)
    others = any(change.startswith("data.train=") for change in changes)
    forgotten = ["data.subset=null"] if others else []  # it is of the laboratory's own data
    return read_config(default or default_config(), [*(embedded or []), *forgotten, *changes])


def _is_override(word: str) -> bool:
    """Whether what stands in a config's place is a setting of the embedded default."""
    return "=" in word and not Path(word).exists()


def carry_out(settings: Config, as_json: bool) -> None:
    """Do a job and tell of it: events as they come, then the result."""
    from sparring import console
    from sparring.job import run_job
    from sparring.report.findings import verdict

    if follows():
        run_job(settings)
        return
    speak = console.listener(as_json, console.REWARDED if settings.reinforce else None)
    command = shlex.join(["sparring", *sys.argv[1:]])
    with speak if isinstance(speak, console.Bars) else nullcontext():
        folder = run_job(settings, [speak], command)
    page = folder / "report.html"
    if as_json:
        speak({"event": "done", "run": str(folder), "report": str(page), "verdict": verdict(folder)})
        return
    print()
    conclude(folder, page)


def conclude(run: Path, page: Path) -> None:
    """The result table, the verdict, the warnings, where the report is, and what must not be missed."""
    from sparring.report.findings import last_line, verdict, warnings_of
    from sparring.report.quantised import quantised_line
    from sparring.report.records import read_run
    from sparring.report.tables import result_rows
    from sparring.terminal import print_table

    print_table(*result_rows(run))
    print(f"\n{verdict(run)}\n")
    if cost := quantised_line(read_run(run)):
        print(cost)
    for warning in warnings_of(read_run(run)):
        print(f"warning: {warning}")
    print(f"report: {page}")
    if said := last_line(run):
        print(said)
