"""A comparison with reinforcement learning and the best of n answers, through the real command line, with a kill."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.trajectory.test_study import COMMAND, SMALL, _wait

pytestmark = pytest.mark.slow
ARMS = ["sft", "rl", "continued", "spin-anchor", "sft-best-of-3", "rl-best-of-3"]
REINFORCE = {"samples": 4, "batch_size": 8, "beta": 0.1, "iterations": 2}


def write(folder: Path, **asked: Any) -> Path:
    compare = {"seeds": [0, 1], "lr": [1e-3], "arms": ARMS, "primary": "scorer", **asked}
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "reinforce": REINFORCE, "compare": compare}))
    return file


def run(folder: Path, **asked: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, str(write(folder, **asked))], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was killed while the arm rl learnt, and gone on with."""
    folder = tmp_path_factory.mktemp("study")
    process = subprocess.Popen([*COMMAND, str(write(folder))], cwd=folder, stdout=subprocess.DEVNULL)
    study = folder / "runs" / "study.compare"
    _wait(lambda: any(study.glob("arms/rl/*/seed-0/1/played*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (study / "study.json").exists()
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return study


@pytest.fixture(scope="module")
def arms(made: Path) -> dict[str, Any]:
    return {arm["name"]: arm for arm in json.loads((made / "study.json").read_text())["arms"]}


def test_every_arm_chooses_and_is_compared_by_the_scorers_mean(made: Path, arms: dict[str, Any]) -> None:
    study = json.loads((made / "study.json").read_text())
    assert list(arms) == ARMS
    assert study["primary"] == "reward"
    assert study["metrics"]["reward"]["better"] == "higher"
    assert set(study["family"]) == {f"{name} vs continued" for name in ARMS if name != "continued"}
    assert study["headline"].startswith("SPIN + anchor ")
    assert study["config"]["scorer"]["name"] == "validity"
    for arm in arms.values():
        assert 0 < arm["values"]["reward"]["mean"] <= 1
        for one in arm["runs"]:
            best = json.loads((made / one["folder"] / "best" / "best.json").read_text())
            assert best["metric"] == "reward"
            assert best["value"] == max(best["values"].values())


def test_budgets_are_equal_with_rl(arms: dict[str, Any]) -> None:
    goal = arms["spin-anchor"]["budget"]["flops"]
    for name in ("rl", "continued", "rl-best-of-3"):
        assert arms[name]["budget"]["flops"] == pytest.approx(goal, rel=0.05)
    assert arms["sft-best-of-3"]["budget"]["flops"] == 0


def test_the_best_of_n_is_of_the_same_players_and_only_tested_again(made: Path, arms: dict[str, Any]) -> None:
    for name in ("rl", "sft"):
        ranked = arms[f"{name}-best-of-3"]
        assert ranked["budget"] == arms[name]["budget"]
        assert ranked["against"].keys() >= {"continued", *({name} - {"sft"})}
        assert ranked["values"]["reward"]["mean"] >= arms[name]["values"]["reward"]["mean"]
        assert ranked["values"]["prompt_tokens"]["mean"] > 2 * arms[name]["values"]["prompt_tokens"]["mean"]
        for mine, theirs in zip(ranked["runs"], arms[name]["runs"], strict=True):
            one, two = made / mine["folder"], made / theirs["folder"]
            files = [path.relative_to(two) for path in two.glob("*/**/*") if path.is_file()]
            lent = [file for file in files if file.parts[0] not in ("test", "tables")]
            assert len(lent) > 6
            assert all((one / file).read_bytes() == (two / file).read_bytes() for file in lent)


def test_what_an_arm_has_no_number_for_is_left_empty(made: Path, arms: dict[str, Any]) -> None:
    ranked = arms["rl-best-of-3"]
    assert "nll" in arms["rl"]["values"]
    for key in ("nll", "exact_kl", "kl_base", "kl_start"):
        assert key not in ranked["values"]
        assert all(key not in found for found in ranked["against"].values())
    with (made / "tables" / "arms.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["mean"] for row in rows if (row["arm"], row["metric"]) == ("rl-best-of-3", "nll")] == [""]
    page, text = ((made / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    for said in ("RL, best of 3", "answer costs 3 times the sampled tokens", "nor is what the scorer computes"):
        assert said in page
        assert said in text


def test_another_scorer_is_another_study(made: Path) -> None:
    folder = made.parents[1]
    file = write(folder)
    file.write_text(file.read_text() + "scorer: {name: regex, pattern: '[0-4]$'}\n")
    done = subprocess.run([*COMMAND, str(file)], cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0
    assert "was made with scorer" in done.stderr


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"primary": "nll"}, "the best of 3 answers has no likelihood, and so no nll, which is compare.primary"),
        ({"arms": [{"name": "x", "like": "rl", "settings": {"reinforce.sample": 4}}]}, 'mean "reinforce.samples"?'),
        ({"arms": [{"name": "x", "settings": {"reinforce.samples": 1}}]}, "compares the answers of a group"),
    ],
)
def test_refused_before_anything_is_trained(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    done = run(tmp_path, **asked)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
