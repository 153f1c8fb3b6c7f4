"""The verb of preference pairs. Its modules are imported when it is chosen."""

from __future__ import annotations

import typer

from sparring.cli_runs import ConfigArgument, JsonOption, Overrides, carry_out, given_config

app = typer.Typer()


@app.command()
def dpo(config: ConfigArgument = None, overrides: Overrides = None, as_json: JsonOption = False) -> None:
    """Learn from pairs of a chosen and a rejected answer: DPO or IPO. Goes on after a kill."""
    from sparring.laboratory import dpo_config
    from sparring.verbs import for_verb

    carry_out(for_verb(given_config(config, overrides, default=dpo_config()), "dpo"), as_json)
