"""The verb that talks: chat. Its modules are imported when it is chosen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sparring.cli_evaluate import BestOfOption, PlayerOption, RunsOption, ScorerOption

app = typer.Typer()


@app.command()
def chat(
    which: Annotated[str, typer.Argument(metavar="RUN|FOLDER", help="a run, `last`, or a model's folder")],
    vs: Annotated[str | None, typer.Option(help="a second player, which answers beside the first")] = None,
    player: PlayerOption = "best",
    temperature: Annotated[float, typer.Option(min=0)] = 1.0,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="default: the run's")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    system: Annotated[str | None, typer.Option(help="what the model is told first; default: the run's")] = None,
    best_of: BestOfOption = 1,
    scorer: ScorerOption = None,
    folder: RunsOption = "runs",
) -> None:
    """Talk with a player, or with two side by side. Input from a pipe: one answer per line, as plain text."""
    if top_p == 0:
        raise typer.BadParameter("top-p must be above 0")
    from sparring.chatting.opening import Wishes, open_chat
    from sparring.chatting.terminal import answer_lines, talk

    wishes = Wishes(player, vs, temperature, top_p, max_new_tokens, seed, system, best_of, scorer)
    opened = open_chat(which, Path(folder), wishes)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        answer_lines(opened, sys.stdin.buffer, sys.stdout, sys.stderr)
        return
    from rich.console import Console

    try:
        talk(opened, Console())
    except KeyboardInterrupt:  # the second of two in a row
        print()
