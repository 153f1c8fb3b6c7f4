"""The verb `reward`: train a reward model, or score a file with one. Its modules are imported when it is chosen."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparring.cli_runs import follows, given_config

if TYPE_CHECKING:
    from sparring.config import Config

app = typer.Typer()


@app.command()
def reward(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.yaml] [a.b=value …] | score RUN FILE",
            help="train by a config (without one, on the laboratory's planted preferences), or score the answers of a "
            "file by a reward model that a run made",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="score: the file to write; default: standard output")] = None,
    folder: Annotated[str, typer.Option("--runs", help="score: the folder that holds the runs")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="events as JSON lines, for machines")] = False,
) -> None:
    """Distil people's comparisons into a reward model; `reward score RUN FILE` gives a number for every answer."""
    given = list(words or [])
    if given[:1] == ["score"]:
        _score(given[1:], out, folder)
        return
    if out is not None:
        raise typer.BadParameter("--out belongs to `sparring reward score`")
    _train(_config(given), as_json)


def _score(given: list[str], out: Path | None, folder: str) -> None:
    if len(given) != 2:
        raise typer.BadParameter("give `sparring reward score RUN FILE`: a run's folder, and a file with answers")
    from sparring.browse import find_run
    from sparring.rewards.scored import score_file

    for line in score_file(find_run(given[0], Path(folder)), Path(given[1]), out):
        print(line)
    if out is not None:
        print(f"scores: {out}", file=sys.stderr)


def _config(given: list[str]) -> Config:
    from sparring.laboratory import reward_config
    from sparring.verbs import for_verb

    return for_verb(given_config(given[0] if given else None, given[1:], default=reward_config()), "reward")


def _train(settings: Config, as_json: bool) -> None:
    from sparring import console
    from sparring.job import run_job

    if follows():
        run_job(settings)
        return
    speak = console.listener(as_json)
    with speak if isinstance(speak, console.Bars) else nullcontext():
        folder = run_job(settings, [speak], shlex.join(["sparring", *sys.argv[1:]]))
    if as_json:
        from sparring.report.reward import headline, read_scores

        scores = read_scores(folder)
        done = {"event": "done", "run": str(folder), "report": str(folder / "report.html")}
        print(json.dumps({**done, "verdict": headline(scores), **scores}))
        return
    print()
    told(folder)


def told(folder: Path) -> None:
    """A reward run's table, verdict and warnings, and where its page is."""
    from sparring.report.records import read_run
    from sparring.report.reward import headline, read_scores, reward_rows, warnings_of_reward
    from sparring.terminal import print_table

    scores = read_scores(folder)
    header, rows = reward_rows(scores)
    if rows:
        print_table(header[:2], [row[:2] for row in rows])
    print(f"\n{headline(scores)}\n")
    for warning in warnings_of_reward(read_run(folder), scores):
        print(f"warning: {warning}")
    print(f"report: {folder / 'report.html'}")
