"""The verb of reinforcement learning. Its modules are imported when it is chosen."""

from __future__ import annotations

import typer

from sparring.cli_runs import ConfigArgument, JsonOption, Overrides, carry_out, given_config

app = typer.Typer()

# the laboratory's model is so small, and its answers so short, that it learns with far larger steps than a real one
EMBEDDED = ["name=laboratory-reinforce", "reinforce.iterations=6", "reinforce.lr=1.0e-3", "reinforce.beta=0.2"]


@app.command()
def reinforce(config: ConfigArgument = None, overrides: Overrides = None, as_json: JsonOption = False) -> None:
    """Learn from rewards: sample a group of answers per prompt, score them, GRPO or its kin. Goes on after a kill."""
    from sparring.verbs import for_verb

    carry_out(for_verb(given_config(config, overrides, EMBEDDED), "reinforce"), as_json)
