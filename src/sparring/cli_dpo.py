"""The verb of preference pairs. Its modules are imported when it is chosen."""

from __future__ import annotations

import typer

from sparring.cli_runs import JsonOption, Overrides, carry_out

app = typer.Typer()


@app.command()
def dpo(
    config: str = typer.Argument(metavar="CONFIG.yaml", help="the config; data.train names preference pairs"),
    overrides: Overrides = None,
    as_json: JsonOption = False,
) -> None:
    """Learn from pairs of a chosen and a rejected answer: DPO or IPO. Goes on after a kill."""
    from sparring.configfile import read_config
    from sparring.dpo import prefer, settled_dpo

    carry_out(settled_dpo(read_config(config, list(overrides or []))), prefer, as_json)
