"""Best of n in the test: chosen by the scorer among the answers there are; of a finished run only the test is made."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from sparring.config import decisive
from sparring.configfile import build_config, read_config
from sparring.errors import ConfigError
from sparring.evaluation.metrics import METRICS
from sparring.job import run_job
from sparring.laboratory import default_config, dpo_config, world
from sparring.report.page import write_report
from sparring.rewards.build import build_scorer
from sparring.rewards.rank import kl_bound
from sparring.rewards.scorer import Answered
from sparring.selfplay import self_play
from tests.laws import lab

SHORT = ["selfplay.iterations=1", "data.eval_limit=12", "data.test_size=12", "evaluation.match=last_number"]
DIGITS = 'scorer={name: regex, pattern: "[5-9]$"}'


def played(folder: Path, *overrides: str, name: str = "run") -> Path:
    with lab.session(folder, *SHORT, *overrides, name=name) as session:
        self_play(session)
        session.run.gather()
        return session.run.folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def events(run: Path, kind: str, which: str = "best") -> list[dict[str, Any]]:
    return [row for row in lines(run / "metrics.jsonl") if row["event"] == kind and row["which"] == which]


# ---------------------------------------------------------------- the config


def test_what_best_of_needs() -> None:
    with pytest.raises(ConfigError, match=r"best_of 4 chooses among answers to test prompts, and there are none"):
        build_config({}, ["evaluation.best_of=4"])
    chats = {"data": {"train": "chats.jsonl", "test": "more.jsonl"}, "evaluation": {"best_of": 4}}
    with pytest.raises(ConfigError, match=r"best_of 4 needs something that says which answer is best"):
        build_config(chats)
    build_config(chats, ["evaluation.match=last_number"])
    build_config({}, ["evaluation.best_of=4", "data.test_size=20"])  # the laboratory knows what is valid


def test_it_decides_the_test_alone() -> None:
    plain, used = (build_config({}, ["data.test_size=20", f"evaluation.best_of={n}"]) for n in (1, 4))
    assert decisive(plain) == decisive(used)


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(the run, its test with one answer, marks of its phases before best_of was added)."""
    folder = tmp_path_factory.mktemp("best-of")
    run = played(folder, DIGITS)
    plain = lines(run / "test" / "best.jsonl")
    marks = {path: path.read_bytes() for path in run.rglob("phase.json")}
    played(folder, DIGITS, "evaluation.best_of=4")
    return run, plain, marks


def test_only_the_test_is_made_again(runs: Any) -> None:
    run, _, marks = runs
    changed = [path.parent.name for path, content in marks.items() if path.read_bytes() != content]
    assert changed == ["test"]
    made = {path: path.read_bytes() for path in run.rglob("phase.json")}
    played(run.parent, DIGITS, "evaluation.best_of=4")  # finished: nothing is made
    assert all(path.read_bytes() == content for path, content in made.items())


def test_rows_are_those_of_the_chosen_answer(runs: Any) -> None:
    run, plain, _ = runs
    rows, all_said = (lines(run / "test" / f"best{part}.jsonl") for part in ("", "-candidates"))
    assert [row["key"] for row in rows] == [row["key"] for row in plain]
    for row, one, said in zip(rows, plain, all_said, strict=True):
        scores = [float(text[-1:] in "56789" and text != "") for text in said["answers"]]
        assert said["scores"] == scores
        assert said["chosen"] == scores.index(max(scores))
        assert said["answers"][0] == one["answer"]  # the first of n is the one that a single draw gives
        assert row["answer"] == said["answers"][said["chosen"]]
        assert row["reward"] == max(scores)
        assert row["match"] == float(row["answer"][-1:] == row["real"][-1]) == said["match"][said["chosen"]]
        assert row["valid"] == float(row["answer"] in world.answers(row["prompt"])) == said["valid"][said["chosen"]]
        assert row["length"] == len(row["ids"][0])
        assert row["greedy"] == one["greedy"]
        assert row["prompt_tokens"] > one["prompt_tokens"]
        assert one["reward"] == float(one["answer"][-1:] in "56789")
        for name in ("nll", "kl_base", "kl_start", "exact_kl", "valid_mass"):
            assert row[name] is None
            assert one[name] is not None
    event = events(run, "test")[0]
    assert (event["best_of"], event["nll"], event["ece"]) == (4, None, None)
    assert event["reward"] == sum(row["reward"] for row in rows) / len(rows)


def test_the_curve_against_plain_means(runs: Any) -> None:
    run, _, _ = runs
    said = lines(run / "test" / "best-candidates.jsonl")
    points = events(run, "best_of")
    assert [point["n"] for point in points] == [1, 2, 4]
    assert [point["kl"] for point in points] == [kl_bound(n) for n in (1, 2, 4)]
    one, four = points[0], points[-1]
    for name in ("match", "valid"):
        assert one[name] == pytest.approx(sum(sum(row[name]) / 4 for row in said) / 12)
        assert four[f"{name}_low"] <= four[name] <= four[f"{name}_high"]
        assert four[f"{name}_gain"] == pytest.approx(four[name] - one[name])
        assert one[f"{name}_gain"] == 0
    assert one["reward"] == pytest.approx(sum(sum(row["scores"]) / 4 for row in said) / 12)
    assert four["reward"] == pytest.approx(sum(max(row["scores"]) for row in said) / 12)
    assert one["reward"] < four["reward"]


def test_what_chooses_is_no_yardstick_of_itself(tmp_path: Path) -> None:
    run = played(tmp_path, "evaluation.best_of=2", "selfplay.iterations=0")  # by validity, the default here
    point = events(run, "best_of")[-1]
    assert point["scorer"] == "validity"
    assert "valid" not in point
    assert "match" in point
    matched = played(tmp_path, "scorer={name: match, match: last_number}", "evaluation.best_of=2", name="matched")
    assert "match" not in events(matched, "best_of")[-1]
    for row in lines(matched / "test" / "best.jsonl"):
        assert row["reward"] == row["match"]


@pytest.mark.parametrize("best_of", [1, 3])
def test_a_scorer_on_the_ring_disturbs_nothing(tmp_path: Path, best_of: int) -> None:
    """Players that take the ring's seat: the test's other numbers are those of a run that nothing scores."""
    plain = played(tmp_path)
    told = lines(plain / "test" / "last.jsonl") if (plain / "test" / "last.jsonl").exists() else None
    implicit = f"scorer={{name: implicit, run: '{plain}', player: '0', reference: base}}"
    run = played(tmp_path, implicit, f"evaluation.best_of={best_of}", name="scored")
    which = "last" if told is not None else "best"
    rows = lines(run / "test" / f"{which}.jsonl")
    if best_of == 1:
        for row, one in zip(rows, told or lines(plain / "test" / "best.jsonl"), strict=True):
            assert {name: row[name] for name in one} == one
    with lab.session(tmp_path, *SHORT, implicit, f"evaluation.best_of={best_of}", name="scored") as session:
        scorer = build_scorer(session.config.scorer, session)  # type: ignore[arg-type]
        tokenizer = session.renderer.tokenizer
        for row in rows:
            prompt = tokenizer(row["prompt"]).input_ids
            alone = scorer([Answered(prompt, ids, []) for ids in row["ids"]])
            assert row["reward"] == pytest.approx(sum(alone) / len(alone), abs=1e-4)


def test_a_run_that_nothing_scores_keeps_its_test(tmp_path: Path) -> None:
    """The fingerprint of such a test is that of older run folders."""
    run = played(tmp_path, "selfplay.iterations=0")
    event = events(run, "test")[0]
    assert event["reward"] is None
    assert [name for name in METRICS if event[name] is None] == ["reward"]
    with lab.session(tmp_path, *SHORT, "selfplay.iterations=0") as session:
        self_play(session)
        test = session.run._visited[-1]
        data, start, best = (session.run.folder / name for name in ("data", "sft", "best"))
        assert test.name == "test"
        prints = [json.loads((path / "phase.json").read_text())["fingerprint"] for path in (data, start, start, start)]
        assert best.exists()
        assert test.fingerprint == session.run._made_from("test", tuple(prints), {})


def test_the_report_says_it(runs: Any) -> None:
    run, _, _ = runs
    page = write_report(run).read_text(encoding="utf-8")
    words = (run / "report.md").read_text(encoding="utf-8")
    table = (run / "tables" / "best_of.csv").read_text(encoding="utf-8").splitlines()
    for said in (page, words):
        assert "best of 4" in said
        assert "has no likelihood" in said
    assert 'id="plot-best-of"' in page
    assert len(table) == 1 + len(events(run, "best_of")) + len(events(run, "best_of", "last"))


@pytest.mark.parametrize("verb", ["dpo", "reinforce"])
def test_other_verbs_have_it_too(tmp_path: Path, verb: str) -> None:
    small = [f"runs={tmp_path}", "name=run", "threads=1", "data.eval_limit=12", "evaluation.best_of=3"]
    if verb == "dpo":
        asked = [f"{n}+1+2=" for n in range(10)]
        right = [world.sample(prompt, random.Random(prompt)) for prompt in asked]
        rows = [{"prompt": p, "chosen": y, "rejected": "1+2=3;3+4=8"} for p, y in zip(asked, right, strict=True)]
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        more = [
            "sft.epochs=0",
            f"data.train={file}",
            f"data.test={file}",
            "data.split='[:6]'",
            "data.test_split='[6:]'",
        ]
        config = read_config(dpo_config(), [*small, *more, "data.subset=null", "data.render=text", DIGITS])
    else:
        more = ['data.split="[:24]"', "data.test_size=12", "sft.epochs=1", "reinforce.iterations=1"]
        config = read_config(default_config(), [*small, *more])
    run = run_job(config)
    event = events(run, "test")[0]
    rows = lines(run / "test" / "best.jsonl")
    assert event["best_of"] == 3
    assert event["reward"] == sum(row["reward"] for row in rows) / len(rows)
    assert [point["n"] for point in events(run, "best_of")] == [1, 2, 3]
