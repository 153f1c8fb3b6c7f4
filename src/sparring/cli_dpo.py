"""The verb of preference pairs. Its modules are imported when it is chosen."""

from __future__ import annotations

import typer

from sparring.cli_plan import DryRunOption, show_plan
from sparring.cli_runs import ConfigArgument, JsonOption, Overrides, carry_out, given_config

app = typer.Typer()


@app.command()
def dpo(
    config: ConfigArgument = None,
    overrides: Overrides = None,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Learn from pairs of a chosen and a rejected answer: DPO or IPO. Goes on after a kill."""
    from sparring.laboratory import dpo_config
    from sparring.verbs import for_verb

    settings = for_verb(given_config(config, overrides, default=dpo_config()), "dpo")
    (show_plan if dry_run else carry_out)(settings, as_json)
