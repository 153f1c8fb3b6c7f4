"""Which methods there are, and the verbs that hand a player over: methods, merge, export. Imported when chosen."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparring.cli_evaluate import JsonOption, RunArgument, RunsOption

app = typer.Typer()


class Dtype(StrEnum):
    """What weights are written in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@app.command()
def merge(
    which: RunArgument,
    out: Annotated[Path, typer.Option(help="the folder to write")],
    iteration: Annotated[
        str, typer.Option("--iteration", "--player", help="best, sft, or an iteration's number")
    ] = "best",
    dtype: Annotated[Dtype | None, typer.Option(help="of the weights; default: what the run computed in")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a model's folder that is there")] = False,
    folder: RunsOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Write a player merged into its base, never a quantised one, as an ordinary model folder; then measure it."""
    from sparring.browse import find_run

    run = find_run(which, Path(folder))
    from sparring.export.merged import merge_run
    from sparring.terminal import print_table

    found = merge_run(run, out, iteration, dtype and dtype.value, force)
    if as_json:
        print(json.dumps(found.facts()))
        return
    print_table(*found.table())
    print(f"\n{found.text()}")


@app.command()
def export(
    which: RunArgument,
    to: Annotated[str, typer.Option(metavar="A,B", help="adapter, merged, gguf[:KIND], gguf:lora, ollama; several")],
    iteration: Annotated[
        str, typer.Option("--iteration", "--player", help="best, sft, or an iteration's number")
    ] = "best",
    out: Annotated[Path | None, typer.Option(help="what the folders are written to; default: RUN-PLAYER")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="of merged weights; default: what the run computed in")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace what was exported there before")] = False,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="upload it to the Hugging Face hub")] = None,
    public: Annotated[bool, typer.Option("--public", help="with --push: all may see it")] = False,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="write GGUF without llama.cpp; the folder is named so")
    ] = False,
    folder: RunsOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Write a player as a PEFT adapter, merged, as GGUF, for Ollama; each is loaded again and held against the run."""
    from sparring.export.targets import read_targets

    targets = read_targets(to)
    if public and push is None:
        raise typer.BadParameter("--public says who may see what --push uploads; give --push too")
    from sparring.browse import find_run

    found = find_run(which, Path(folder))
    from sparring.export.exporting import Push, export_run
    from sparring.terminal import print_table

    def tell(text: str) -> None:
        print(text, file=sys.stderr)

    pushed = Push(push, not public) if push else None
    kind = dtype and dtype.value
    written = export_run(found, targets, out, iteration, kind, force, pushed, unverified, tell)
    if as_json:
        for event in written.facts():
            print(json.dumps(event))
        return
    header, rows = written.table()
    if rows:
        print_table(header, rows)
        print()
    for line in written.lines():
        print(line)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="one of them, with its settings")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="as a Markdown table")] = False,
    as_json: JsonOption = False,
) -> None:
    """The PEFT methods, and what can be done with their players."""
    from sparring.support import HEADER, about, support_markdown, support_rows
    from sparring.terminal import print_table

    if name is not None:
        said, settings = about(name)
        print(said)
        if settings:
            print()
            print_table(["setting", "default", ""], settings)
    elif markdown:
        print(support_markdown(), end="")
    elif as_json:
        for row in support_rows():
            print(json.dumps(dict(zip(HEADER, row, strict=True))))
    else:
        print_table(HEADER, support_rows())
