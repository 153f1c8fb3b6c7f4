"""What `sparring check` and `--dry-run` show. Its modules are imported when it is asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from sparring.cli_runs import follows

if TYPE_CHECKING:
    from sparring.config import Config

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="the same as `sparring check`")]


def show_plan(settings: Config, as_json: bool) -> None:
    """Print the plan of what the config is for."""
    from sparring.plan import plan

    if follows():
        return
    found = plan(settings)
    print(json.dumps(found.facts) if as_json else found.text)
