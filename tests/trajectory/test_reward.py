"""`sparring reward`: planted preferences are found again, a killed run ends in the same bytes, a file is scored."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparring.browse import list_runs
from sparring.cli import main
from sparring.configfile import build_config
from sparring.errors import DataError, ModelError, RewardError, RunError
from sparring.job import run_job
from sparring.laboratory import planted, world
from sparring.names import player_name
from sparring.report.records import read_run
from sparring.report.reward import headline, read_scores, warnings_of_reward
from sparring.rewards.scored import reward_judge, score_file
from sparring.start import settled
from tests.trajectory.arena import KILLED, Arena, assert_same, contents, report_without_times

FLIPPED = 0.1


def ordered_pairs(path: Path, prompts: int = 1000, flipped: float = FLIPPED, seed: int = 0, **more: Any) -> None:
    """Pairs whose planted order is easy to see: of two answers that differ in the last digit, the higher one."""
    draw = random.Random(seed)
    rows = []
    for prompt in draw.sample(world.PROMPTS, prompts):
        answer = world.sample(prompt, draw)[:-1]
        low, high = sorted(draw.sample(range(10), 2))
        chosen, rejected = (low, high) if draw.random() < flipped else (high, low)
        rows.append({"prompt": prompt, "chosen": f"{answer}{chosen}", "rejected": f"{answer}{rejected}", **more})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(folder: Path, **more: Any) -> Any:
    tree: dict[str, Any] = {
        "name": "r", "runs": str(folder / "runs"), "threads": 1, "model": {"device": "cpu", "dtype": "fp32"},
        "data": {"train": str(folder / "pairs.jsonl"), "eval_size": 0.2},
        "reward": {"epochs": 4, "lr": 2e-3, "batch_size": 16}, **more,
    }  # fmt: skip
    return build_config(tree)


def in_order(row: dict[str, Any]) -> bool:
    """Whether a pair stands in the planted order."""
    return bool(row["chosen"][-1] > row["rejected"][-1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    ordered_pairs(folder / "pairs.jsonl")
    return run_job(config_of(folder))


def test_the_planted_order_is_found(trained):
    """10 % of the labels are turned round, so 90 % is what they allow; the order itself is found nearly always."""
    scores = read_scores(trained)
    rows = [json.loads(line) for line in (trained / "reward-scores" / "pairs.jsonl").read_text().splitlines()]
    assert scores["n"] == len(rows) == 200
    planted_right = [(row["chosen_reward"] > row["rejected_reward"]) == in_order(row) for row in rows]
    assert sum(planted_right) / len(rows) > 0.97
    allowed = sum(in_order(row) for row in rows) / len(rows)
    assert scores["accuracy"]["mean"] == pytest.approx(allowed, abs=0.03)
    assert scores["accuracy"]["low"] < 0.9 < scores["accuracy"]["high"] + 0.03
    assert scores["longer"]["mean"] == 0.5
    assert "more than chance, and more than" in headline(scores)
    assert abs(scores["reward_mean"]) < 0.5 * scores["reward_deviation"]  # centred


def test_the_folder_is_an_ordinary_adapter_with_a_head(trained):
    names = sorted(path.name for path in (trained / "reward").iterdir())
    assert names == [
        "adapter_config.json", "adapter_model.safetensors", "head.safetensors", "metrics.jsonl", "phase.json",
        "player.json", "reward.json",
    ]  # fmt: skip
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from sparring.laboratory import base_folder

    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder()), trained / "reward")
    lock = yaml.safe_load((trained / "run.lock.yaml").read_text())
    assert lock["same"]["made by"] == "sparring reward"
    assert lock["same"]["reward"]["epochs"] == 4
    assert not {"reward", "scorer"} & set(lock["same"]) - {"reward"}


def test_the_first_step_knows_nothing(trained):
    first = read_run(trained).steps["reward"][0]
    assert first["reward_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert (first["accuracy"], first["margin"]) == (0.5, 0.0)


def test_report(trained, capsys, monkeypatch):
    for name in ("report.html", "report.md"):
        page = (trained / name).read_text()
        assert "calibration error" in page
        assert "The reward model prefers the chosen answer in" in page
    assert "http" not in (trained / "report.html").read_text().replace("http://www.w3.org", "").replace(
        "http-equiv", ""
    )
    before = (trained / "report.html").read_bytes()
    monkeypatch.setattr("sys.argv", ["sparring", "report", str(trained)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "accuracy" in told
    assert "report.html" in told
    assert (trained / "report.html").read_bytes() == before
    monkeypatch.setattr("sys.argv", ["sparring", "runs", "--runs", str(trained.parent), "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["state"] == "finished"


# ---------------------------------------------------------------- scoring a file


def test_score_a_file(trained, tmp_path, capsys, monkeypatch):
    rows = [json.loads(line) for line in (trained / "reward-scores" / "pairs.jsonl").read_text().splitlines()][:5]
    file = tmp_path / "answers.jsonl"
    asked = [{"prompt": r["prompt"], "answer": r[side], "id": i} for i, r in enumerate(rows) for side in ("chosen",)]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    out = tmp_path / "scores.jsonl"
    monkeypatch.setattr("sys.argv", ["sparring", "reward", "score", str(trained), str(file), "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["score"] for row in found] == pytest.approx([row["chosen_reward"] for row in rows], abs=1e-4)
    assert [{k: v for k, v in row.items() if k != "score"} for row in found] == asked
    assert list(score_file(trained, file)) == out.read_text().splitlines()
    assert capsys.readouterr().out == ""


def test_a_reward_model_as_judge(trained):
    rows = [json.loads(line) for line in (trained / "reward-scores" / "pairs.jsonl").read_text().splitlines()]
    judge = reward_judge(f"reward:{trained}")
    said = [judge(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    assert said == ["first" if row["chosen_reward"] > row["rejected_reward"] else "second" for row in rows]
    assert judge(rows[0]["prompt"], "", "") == "tie"  # a player may end at once
    assert reward_judge("rule:longer") is None
    assert reward_judge("reward:/nowhere") is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1+2+3="}, "a.jsonl:1: missing column: no answer"),
        ({"answer": "1+2=3;3+3=6"}, "a.jsonl:1: missing column"),
        ({"prompt": "1+2+3=", "answer": ""}, "a.jsonl:1: empty answer"),
        ({"prompt": "1+2+3=", "answer": 3}, "a.jsonl:1: wrong type"),
        ({"prompt": "1+2+3=", "answer": "1" * 500}, "a.jsonl:1: .* tokens, but the model's context is"),
        ([1], "a.jsonl:1: wrong type"),
    ],
)
def test_rows_that_cannot_be_scored(trained, tmp_path, row, message):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message) as found:
        list(score_file(trained, tmp_path / "a.jsonl"))
    assert "bad_rows" not in str(found.value)


def test_a_run_that_is_no_reward_model(tmp_path):
    (tmp_path / "run.lock.yaml").write_text("")
    with pytest.raises(RewardError, match="is no reward model"):
        list(score_file(tmp_path, tmp_path / "a.jsonl"))


def test_a_reward_model_is_no_player(trained):
    with pytest.raises(RunError, match="gives scores and no answers"):
        player_name(trained, "best")
    header, rows = list_runs(trained.parent)
    found = dict(zip(header, rows[0], strict=True))
    assert (found["state"], found["best"]) == ("finished", "reward model")
    assert found["held out"] == f"{read_scores(trained)['accuracy']['mean']:.4f} right"


# ---------------------------------------------------------------- data and settings


def test_nothing_to_learn_is_said(tmp_path):
    """Labels by coin: no better than chance, and the report says so."""
    ordered_pairs(tmp_path / "pairs.jsonl", 300, flipped=0.5, votes=[1, 0, 1])
    run = run_job(config_of(tmp_path, reward={"epochs": 1}))
    scores = read_scores(run)
    said = warnings_of_reward(read_run(run), scores)
    assert any("not certainly better than chance" in line for line in said)
    assert any("60 held-out pairs are few" in line for line in said)
    people = scores["people"]
    assert people["pairs"] == 60
    assert people["agree"] == pytest.approx(1 / 3)
    assert people["label"] == pytest.approx(2 / 3)
    assert "two annotators" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1+2+3=", "chosen": "1", "rejected": "1"}, "equal answers"),
        ({"prompt": "1+2+3=", "chosen": "1", "rejected": " "}, "empty answer"),
        ({"prompt": "1+2+3=", "chosen": "1"}, 'no "rejected"'),
    ],
)
def test_pairs_that_cannot_be(tmp_path, row, message):
    ordered_pairs(tmp_path / "pairs.jsonl", 5)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"pairs.jsonl:6: .*{message}"):
        run_job(config_of(tmp_path))
    assert not (tmp_path / "runs" / "r").exists()
    data = {"train": str(tmp_path / "pairs.jsonl"), "bad_rows": "skip", "eval_size": 2}
    run = run_job(config_of(tmp_path, data=data, reward={"epochs": 1}))
    assert message in (run / "data" / "bad_rows.txt").read_text()
    assert any("1 bad row was left out" in line for line in warnings_of_reward(read_run(run), read_scores(run)))


def test_the_plant():
    rows, held = planted.split(0)
    assert (len(rows), len(held)) == (2400, 600)
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in held}
    valid = [(planted.is_valid(r["prompt"], r["chosen"]), planted.is_valid(r["prompt"], r["rejected"])) for r in rows]
    assert set(valid) == {(True, False), (False, True)}
    assert valid.count((False, True)) == 240
    assert (rows, held) == planted.split(0)
    assert rows != planted.split(1)[0]


@pytest.mark.parametrize("place", ["reward", "."])
def test_a_reward_model_is_no_start(trained, tmp_path, place):
    settings = build_config({"data": {"train": "laboratory"}, "start": str(trained / place), "sft": {"epochs": 0}})
    with pytest.raises(ModelError, match="is of a reward model, which gives scores and no answers"):
        settled(settings)


def test_a_start_is_trained_on(trained, tmp_path):
    ordered_pairs(tmp_path / "pairs.jsonl", 60)
    run = run_job(config_of(tmp_path, start=str(trained / "reward"), reward={"epochs": 1, "batch_size": 10}))
    moved = (run / "reward" / "adapter_model.safetensors").read_bytes()
    assert len(moved) == len((trained / "reward" / "adapter_model.safetensors").read_bytes())
    assert (run / "start" / "adapter_model.safetensors").read_bytes() == (
        trained / "reward" / "adapter_model.safetensors"
    ).read_bytes()
    assert moved != (run / "start" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dora", "pissa", "prefix", "houlsby", "ia3", "full"])
def test_any_method_makes_a_reward_model(tmp_path, method):
    """Trained, saved, loaded as a scorer, and it learnt: better than no idea on the pairs that it saw."""
    ordered_pairs(tmp_path / "pairs.jsonl", 120, flipped=0.0)
    run = run_job(config_of(tmp_path, method=method, reward={"epochs": 4, "batch_size": 16, "lr": 2e-3}))
    steps = read_run(run).steps["reward"]
    assert steps[-1]["reward_loss"] < steps[0]["reward_loss"]
    assert read_scores(run)["n"] == 24
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"prompt": "1+2+3=", "answer": "1+2=3;3+3=6"}) + "\n")
    (line,) = score_file(run, file)
    assert isinstance(json.loads(line)["score"], float)


# ---------------------------------------------------------------- killed


@pytest.fixture
def place(tmp_path, killer):
    arena = Arena(
        tmp_path / "arena",
        killer,
        data={"train": "pairs.jsonl", "eval_size": 12},
        reward={"epochs": 2, "batch_size": 6, "lr": 2e-3},
    )
    ordered_pairs(arena.folder / "pairs.jsonl", 36)
    return arena


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(place):
    command = ("reward", "config.yaml")
    assert place.go(*command).code == 0
    wanted, report = contents(place.run), report_without_times(place)
    place.run.rename(place.folder / "kept")
    ends = []
    for _ in range(400):
        ends.append(place.go(*command, at="chain", act="kill", kinds=["mkdir", "rename", "save"]).code)
        if ends[-1] == 0:
            break
    assert ends[-1] == 0
    assert set(ends[:-1]) == {KILLED}
    assert len(ends) > 30
    assert_same(contents(place.run), wanted)
    assert report_without_times(place) == report


@pytest.mark.slow
def test_two_processes_make_the_reward_model_of_one(place):
    assert place.go("reward", "config.yaml").code == 0
    wanted = read_scores(place.run)
    place.run.rename(place.folder / "kept")
    assert place.go("reward", "config.yaml", processes=2).codes == [0, 0]
    found = read_scores(place.run)
    assert found["n"] == wanted["n"]
    for key in ("chosen_reward", "rejected_reward", "margin"):
        assert found[key] == pytest.approx(wanted[key], abs=1e-3)


def test_other_settings_are_another_run(place):
    assert place.go("reward", "config.yaml").code == 0
    again = place.go("reward", "config.yaml", "reward.lr=0.001")
    assert again.code == 2
    assert "was made with reward.lr: 0.002, now it is 0.001" in again.sentence
    assert place.go("reward", "config.yaml").code == 0
