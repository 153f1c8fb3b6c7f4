"""The verb that takes in an adapter made elsewhere: import. Its modules are imported when it is chosen."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sparring.importing.check import Verified

app = typer.Typer()


@app.command("import")
def import_(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="the folder of an adapter of PEFT, TRL or Unsloth")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=value …]", help="settings of the run")] = None,
    data: Annotated[
        str | None, typer.Option(help="rows to measure it on, against its base; without it, it is only looked at")
    ] = None,
    base: Annotated[str | None, typer.Option(help="its base: a folder or a hub id; default: what it names")] = None,
    name: Annotated[str | None, typer.Option(help="of the run; default: the folder's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the result as JSON lines, for machines")] = False,
) -> None:
    """Look at an adapter made elsewhere; with --data, make a run of it: measured, and verified against PEFT."""
    changes = list(overrides or [])
    if data is None:
        if changes or name:
            raise typer.BadParameter("settings and --name are for the run that --data makes; give --data FILE")
        _look(adapter, base, as_json)
        return
    from sparring import console
    from sparring.importing.adapter import measure, prepare

    speak = console.listener(as_json)
    command = shlex.join(["sparring", *sys.argv[1:]])
    prepared = prepare(adapter, data, base, name, changes)
    print(json.dumps(prepared.seen.facts()) if as_json else f"{prepared.seen.text()}\n", flush=True)
    with speak if isinstance(speak, console.Bars) else nullcontext():
        run, found = measure(prepared, [speak], command)
    if as_json:
        print(json.dumps(found.facts() | {"run": str(run)}))
        return
    print()
    _measured(run, found)


def _look(adapter: str, base: str | None, as_json: bool) -> None:
    from sparring.importing.adapter import look_at

    seen = look_at(adapter, base)
    if as_json:
        print(json.dumps(seen.facts()))
        return
    print(seen.text())
    if seen.words is not None and seen.words.refusal:
        print(f"it cannot be imported so: {seen.words.refusal}")
        return
    needed = "" if base is None and seen.base.name else f" --base {shlex.quote(base) if base else 'FOLDER'}"
    print(f"\nto measure and verify it: sparring import {shlex.quote(adapter)} --data FILE{needed}")


def _measured(run: Path, found: Verified) -> None:
    from sparring.importing.adapter import against_base, left_out
    from sparring.report.findings import warnings_of
    from sparring.report.records import read_run
    from sparring.report.tables import result_rows
    from sparring.terminal import print_table

    print_table(*result_rows(run))
    print()
    for warning in warnings_of(read_run(run)):
        print(f"warning: {warning}")
    print(against_base(run))
    if said := left_out(run):
        print(said)
    print(found.text())
    print(f"run: {run}; sparring sample, chat, export, serve and report take it as any other")
