"""The verbs of the laboratory: make its base, measure its worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

lab = typer.Typer(help="The laboratory: worlds whose data distribution is known exactly.", no_args_is_help=True)


@lab.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="the folder to write the base to")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    force: Annotated[bool, typer.Option(help="overwrite an existing folder")] = False,
) -> None:
    """Train the laboratory's tiny base on its corrupted world, from nothing."""
    from sparring.laboratory.pretrain import pretrain as train

    train(out, seed=seed, force=force)
    print(f"base: {out}")


@lab.command("run")
def lab_run(
    out: Annotated[Path, typer.Option(help="the folder to write lab.html and lab.json to")] = Path("runs/lab"),
    worlds: Annotated[str, typer.Option(help="A: bandit, B: arithmetic, C: grammar and faults")] = "A,B,C",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    force: Annotated[bool, typer.Option(help="replace an existing laboratory folder")] = False,
) -> None:
    """Measure what theory says where the answer is known, and what faults would do; write a page of figures."""
    from sparring.laboratory.tour import tour

    page = tour(out, [world.strip() for world in worlds.upper().split(",")], seed, force=force, say=print)
    print(f"page: {page}")
