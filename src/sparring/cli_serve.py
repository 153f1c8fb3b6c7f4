"""The verb that hands a run's players to a server: serve. Its modules are imported when it is chosen."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparring.cli_evaluate import RunsOption

app = typer.Typer()


class EngineName(StrEnum):
    """The servers that there are."""

    auto = "auto"
    transformers = "transformers"
    llama_cpp = "llama.cpp"
    vllm = "vllm"


@app.command()
def serve(
    which: Annotated[str, typer.Argument(metavar="RUN|FOLDER", help="a run, `last`, or a model's folder")],
    engine: Annotated[EngineName, typer.Option(help="auto: what is installed and takes the players")] = EngineName.auto,
    player: Annotated[
        list[str] | None, typer.Option(help="best, base, sft, or an iteration's number; may be repeated; default: all")
    ] = None,
    host: Annotated[str, typer.Option(help="another than this machine's own needs a key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    api_key: Annotated[
        str,
        typer.Option(
            envvar="SPARRING_API_KEY",
            help="what clients must bring; other users of this machine see it on a command line: set the variable",
        ),
    ] = "",
    show: Annotated[bool, typer.Option("--show", help="print the server's command, and start nothing")] = False,
    folder: RunsOption = "runs",
) -> None:
    """Serve players as models of an OpenAI-compatible endpoint, by transformers, llama.cpp or vLLM."""
    from sparring.serving.server import Wishes, command, plan, shown
    from sparring.serving.server import serve as start

    made = plan(which, Path(folder), Wishes(engine.value, tuple(player or ()), host, port, api_key))
    for line in made.said():
        print(line, flush=True)
    if show:
        print(f"\n{shown(made, command(made, None))}")
        return
    started = command(made, lambda said: print(f"        {said}", flush=True))
    print(f"\n{shown(made, started)}\n", flush=True)
    start(made, started, lambda said: print(said, flush=True))
