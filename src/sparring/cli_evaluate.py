"""The verbs that use a finished run: sample, judge, bench, mt-bench. Their modules are imported when chosen."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer()

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="a run's folder or name, or `last`")]
RunsOption = Annotated[str, typer.Option("--runs", help="the folder that holds the runs")]
PlayerOption = Annotated[str, typer.Option(help="best, base, sft, or an iteration's number")]
BestOfOption = Annotated[int, typer.Option("--best-of", min=1, help="answer so often, and take the best by the scorer")]
ScorerOption = Annotated[str | None, typer.Option(help="a run of `sparring reward`; default: the run's own scorer")]
JsonOption = Annotated[bool, typer.Option("--json", help="the result as one line of JSON, for machines")]


@app.command()
def sample(
    which: RunArgument,
    prompt: Annotated[str, typer.Argument(help="what to answer; `-` reads standard input")],
    player: PlayerOption = "best",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="how many answers")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    temperature: Annotated[float, typer.Option(min=0)] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    best_of: BestOfOption = 1,
    scorer: ScorerOption = None,
    folder: RunsOption = "runs",
) -> None:
    """Let a player of a run answer a prompt."""
    from sparring.browse import answer, find_run

    text = sys.stdin.read() if prompt == "-" else prompt
    wanted = (player, count, seed, temperature, max_new_tokens, best_of, scorer)
    for line in answer(find_run(which, Path(folder)), text, *wanted, lambda said: print(said, file=sys.stderr)):
        print(line)


@app.command()
def judge(
    which: RunArgument,
    spec: Annotated[str, typer.Option("--judge", help="rule:NAME, reward:FOLDER or endpoint:URL")],
    first: Annotated[str, typer.Option(help="best, base, sft, an iteration's number, or real")] = "best",
    second: Annotated[str, typer.Option(help="the same")] = "sft",
    model: Annotated[str | None, typer.Option(help="the model's name, for an endpoint")] = None,
    key_from: Annotated[str | None, typer.Option(help="environment variable with the endpoint's key")] = None,
    people: Annotated[
        Path | None, typer.Option(help="pairs that people judged: first, how far the judge agrees with them")
    ] = None,
    folder: RunsOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Compare two players' answers: a win rate, both orders asked. Only an endpoint uses the network."""
    from sparring.browse import find_run
    from sparring.measuring import judge_run

    told = _counted if sys.stderr.isatty() else None
    asked: dict[str, Any] = {"model": model, "key_from": key_from, "told": told, "people": people}
    asked["trusted"] = None if as_json else lambda trust: print(trust.text(), flush=True)
    found = judge_run(find_run(which, Path(folder)), spec, first, second, **asked)
    print(json.dumps(found.facts()) if as_json else found.text())


def _counted(done: int) -> None:
    print(f"\r{done} compared ", end="", file=sys.stderr, flush=True)


@app.command()
def bench(
    which: Annotated[str, typer.Argument(metavar="RUN|FOLDER", help="a run, `last`, or a model's folder")],
    tasks: Annotated[str, typer.Option(help="tasks of the lm-evaluation-harness, or `spin` for the paper's six")],
    include_path: Annotated[Path | None, typer.Option(help="a folder with task files of your own")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="examples per task, for a trial")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="examples in the prompt; default: the task's own")] = None,
    player: PlayerOption = "best",
    batch_size: Annotated[int, typer.Option(min=1, help="rows at once")] = 8,
    out: Annotated[Path | None, typer.Option(help="where results go; default: RUN/bench, or ./bench")] = None,
    folder: RunsOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Score a player on tasks of the lm-evaluation-harness; their data come from the hub unless they are local."""
    from sparring.measuring import bench_run

    wanted: dict[str, Any] = {"include_path": include_path, "limit": limit, "batch_size": batch_size}
    path, content = bench_run(which, Path(folder), tasks, shots, player, out, **wanted)
    if as_json:
        print(json.dumps({"event": "bench", "file": str(path), **content}))
        return
    from sparring.evaluation.harness import rows_of
    from sparring.terminal import print_table

    print_table(*rows_of(content["results"]))
    print(f"results: {path}")


@app.command("mt-bench")
def mt_bench(
    which: RunArgument,
    questions: Annotated[Path, typer.Option(help="FastChat's question.jsonl")],
    player: PlayerOption = "best",
    model_id: Annotated[str | None, typer.Option(help="the answers' name; default: RUN-PLAYER")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="questions, for a trial")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 1024,
    out: Annotated[Path | None, typer.Option(help="the folder that gets data/mt_bench; default: RUN")] = None,
    folder: RunsOption = "runs",
) -> None:
    """Answer MT-bench in FastChat's file layout, for FastChat's judge."""
    from sparring.browse import find_run
    from sparring.measuring import mt_bench_run

    found = find_run(which, Path(folder))
    print(mt_bench_run(found, questions, player, model_id, limit, max_new_tokens, out or found))
