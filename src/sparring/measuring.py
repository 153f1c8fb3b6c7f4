"""What `sparring judge`, `bench` and `mt-bench` do with a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparring.browse import find_run, open_player, read_settings
from sparring.errors import InputError, RunError
from sparring.evaluation.judges import About, Verdicts, compare, find_judge
from sparring.evaluation.trusted import Trust
from sparring.evaluation.trusted import trust as agreement_with
from sparring.folder import read_lines
from sparring.names import player_name
from sparring.rewards.scored import reward_judge

if TYPE_CHECKING:
    from sparring.models.base import Base

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of it. first, second: the players' own names; where: test or held-out.

    trust  how far the judge agrees with people, if that was measured
    """

    first: str
    second: str
    where: str
    judge: str
    verdicts: Verdicts
    trust: Trust | None = None

    def facts(self) -> Row:
        """For machines."""
        found, interval = self.verdicts, self.verdicts.interval
        return {
            "event": "judged", "judge": self.judge, "first": self.first, "second": self.second, "answers": self.where,
            "n": len(found.wins), "win_rate": found.rate, "low": interval and interval[0],
            "high": interval and interval[1], "disagreed": found.disagreed, "unclear": found.unclear,
            **({"people": self.trust.facts()} if self.trust else {}),
        }  # fmt: skip

    def text(self) -> str:
        """For people."""
        found, count = self.verdicts, len(self.verdicts.wins)
        interval = found.interval
        between = f" [{interval[0]:.1%}, {interval[1]:.1%}]" if interval else " (too few prompts for an interval)"
        ties = f"{found.disagreed} of {count}, which are ties"
        ties += f"; {found.unclear} replies held no verdict" if found.unclear else ""
        units = len(set(found.prompts))
        asked = f"{self.where} prompts" if units == count else f"answers to {units} {self.where} prompts"
        return (
            f"{self.first} against {self.second}, {self.judge}, {count} {asked}: win rate "
            f"{found.rate:.1%}{between}; the two orders disagreed on {ties}"
        )


def judge_run(
    run: Path,
    spec: str,
    first: str = "best",
    second: str = "sft",
    *,
    model: str | None = None,
    key_from: str | None = None,
    told: Callable[[int], None] | None = None,
    people: Path | None = None,
    trusted: Callable[[Trust], None] | None = None,
) -> Judgement:
    """Let a judge compare what two players of a run said; `real` stands for the real answers.

    people   pairs that people have judged: how far the judge agrees with them is measured first
    trusted  is told that, before the judge is asked about the players

    The answers are those of the test where both have some, else those to the held-out prompts.
    Raises InputError for a judge or a player that there is not.
    """
    names = [name if name == "real" else player_name(run, name) for name in (first, second)]
    if names[0] == names[1]:
        also = f" ({first} is {names[0]})" if first != names[0] else ""
        raise InputError(f"both are {names[0]}{also}; give two players with --first and --second")
    where, mine, theirs = _answers(run, names[0], names[1])
    config = read_settings(run)
    real = {row["prompt"]: row["real"] for row in mine}
    about = About(real, config["evaluation"].get("match"), model, key_from)
    rows = [(a["prompt"], a["answer"], b["answer"]) for a, b in zip(mine, theirs, strict=True)]
    judge = reward_judge(spec) or find_judge(spec, about)
    trust = None
    if people is not None:
        trust = agreement_with(judge, spec, people, told)
        if trusted:
            trusted(trust)
    return Judgement(names[0], names[1], where, spec, compare(judge, rows, told), trust)


def _answers(run: Path, first: str, second: str) -> tuple[str, list[Row], list[Row]]:
    """(test or held-out, the first player's rows, the second's), prompt by prompt."""
    tested = {
        event["player"]: run / "test" / f"{event['which']}.jsonl"
        for event in read_lines(run / "test" / "metrics.jsonl")
        if event["event"] == "test"
    }
    asked = [name for name in (first, second) if name != "real"]
    if not set(asked) <= set(tested):
        tested = {name: _held_out(run, name) for name in asked}
        where = "held-out"
    else:
        where = "test"
    found = {name: _rows(tested[name]) for name in asked}
    found["real"] = [row | {"answer": row["real"]} for row in found[asked[0]]]
    if [row["key"] for row in found[first]] != [row["key"] for row in found[second]]:
        raise RunError(f"{first} and {second} were not asked the same prompts; run the evaluation again")
    return where, found[first], found[second]


def _held_out(run: Path, name: str) -> Path:
    return run / (f"{name}-scores" if name in ("base", "sft") else f"{name}/scores") / "answers.jsonl"


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        raise RunError(f"{path} is not there: this player was not judged yet; finish the run")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- benchmarks


def bench_run(
    which: str, runs: Path, tasks: str, shots: int | None, player: str, out: Path | None, **settings: Any
) -> tuple[Path, Row]:
    """Tasks of the lm-evaluation-harness on a player of a run, or on a model's folder; (file, its content)."""
    from sparring.evaluation.harness import bench, need_harness, save_results, tasks_of

    need_harness()
    wanted = tasks_of(tasks, shots)
    alone = Path(which).expanduser()
    if (alone / "config.json").is_file() and not (alone / "run.lock.yaml").exists():
        base, name, place = _load_folder(alone), alone.resolve().name, out or Path("bench")
        model = base.model
    else:
        run = find_run(which, runs)
        opened = open_player(run, player)
        base, name, place = opened.ring.base, player_name(run, player), out or run / "bench"
        model = opened.ring.seat(opened.player)
        if base.virtual:
            raise InputError(
                f"the player's {base.virtual} virtual tokens would be left out: lm-eval gives the model its own tokens "
                "alone; measure a player of another method, or load the player's folder with PEFT"
            )
    results = bench(model, base.renderer.tokenizer, wanted, context=base.context, **settings)
    content = {"player": name, "tasks": wanted, "limit": settings.get("limit"), "results": results}
    return save_results(place, name, content), content


def _load_folder(folder: Path) -> Base:
    """A model that no run made."""
    from sparring.config import ModelConfig
    from sparring.job import quiet_libraries
    from sparring.models.base import load_base, load_renderer

    quiet_libraries()
    config = ModelConfig(base=str(folder))
    return load_base(folder, config, load_renderer(folder, config))


def mt_bench_run(
    run: Path, questions: Path, player: str, model_id: str | None, limit: int | None, new_tokens: int, out: Path
) -> str:
    """A player's answers to MT-bench in FastChat's layout under `out`; what was done, in words."""
    from sparring.evaluation.mt_bench import Bench, answer_file, read_questions, write_answers

    name = model_id or f"{run.resolve().name}-{player_name(run, player)}"
    path = answer_file(out, name)
    asked = read_questions(questions, limit)
    opened = open_player(run, player)
    bench = Bench(opened.ring, opened.player, opened.config.generation, opened.config.seed, new_tokens)
    write_answers(path, asked, bench(asked), name)
    said = f"{len(asked)} questions answered: {path}"
    if bench.cut:
        said += f"\n{bench.cut} answers were cut at --max-new-tokens {new_tokens} or at the model's context"
    if bench.shortened:
        said += f"\n{bench.shortened} turns were asked without the beginning of their conversation, to fit the context"
    return said
