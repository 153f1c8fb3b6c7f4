"""A comparison through the real command line: what is in its folder, equal budgets, kills, workers, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-c", "from sparring.cli import main; main()", "compare"]
SMALL = {
    "model": {"device": "cpu"},
    "data": {"train": "laboratory", "split": "[:64]", "eval_limit": 24, "test_size": 30},
    "method": {"r": 4},
    "sft": {"epochs": 2, "lr": 2e-3},
    "selfplay": {"iterations": 2, "lr": 2e-4, "beta": 1.0},
    "generation": {"max_new_tokens": 16},
    "threads": 1,
}
ARMS = ["sft", "continued", "stages", "spin-anchor", {"name": "cool", "settings": {"selfplay.iterations": 0},
        "grid": {"evaluation.temperature": [0.8, 1.0]}}]  # fmt: skip


def config(folder: Path, **compare: Any) -> Path:
    asked = {"seeds": [0, 1], "lr": [2e-4], "arms": ARMS, **compare}
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "compare": asked}))
    return file


def run(folder: Path, *changes: str, **compare: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, str(config(folder, **compare)), *changes], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("study")
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "study.compare", done.stdout


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "study.json").read_text())
    return found


def test_the_folder_and_what_is_said(made: tuple[Path, str]) -> None:
    folder, said = made
    assert {"report.html", "report.md", "study.json", "study.lock.yaml", "tables", "arms"} <= {
        p.name for p in folder.iterdir()
    }
    found = facts(folder)
    assert [arm["name"] for arm in found["arms"]] == [
        "sft",
        "continued",
        "stages",
        "spin-anchor",
        "cool",
    ]
    assert found["headline"] in said
    assert found["test_prompts"] == 30
    for arm in found["arms"]:
        assert {"nll", "exact_kl", "valid_mass", "length"} <= set(arm["values"])
        assert [one["seed"] for one in arm["runs"]] == [0, 1]
    assert set(found["family"]) == {f"{name} vs continued" for name in ("sft", "stages", "spin-anchor", "cool")}


def test_budgets_are_equal_and_all_four_are_told(made: tuple[Path, str]) -> None:
    arms = {arm["name"]: arm for arm in facts(made[0])["arms"]}
    goal = arms["spin-anchor"]["budget"]["flops"]
    for name in ("continued", "stages"):
        assert arms[name]["budget"]["flops"] == pytest.approx(goal, rel=0.05)
    assert arms["continued"]["budget"]["steps"] != arms["spin-anchor"]["budget"]["steps"]
    assert all(set(arm["budget"]) == {"steps", "tokens", "flops", "seconds"} for arm in arms.values())
    assert arms["sft"]["budget"]["flops"] == 0 < arms["sft"]["whole"]["flops"]


def test_all_arms_start_from_the_same_theta_0_and_are_tested_on_the_same_prompts(made: tuple[Path, str]) -> None:
    arms = made[0] / "arms"
    for seed in (0, 1):
        starts = {p.read_bytes() for p in arms.glob(f"**/seed-{seed}/sft/adapter_model.safetensors")}
        assert len(starts) == 1
    keys = [[json.loads(line)["key"] for line in p.read_text().splitlines()] for p in arms.glob("**/test/best.jsonl")]
    assert all(one == keys[0] for one in keys)
    asked = [
        set(json.loads(line)["prompt"] for line in p.read_text().splitlines())
        for p in arms.glob("**/seed-0/sft-scores/answers.jsonl")
    ]
    tested = {json.loads(line)["prompt"] for line in next(arms.glob("**/test/best.jsonl")).read_text().splitlines()}
    assert all(not tested & one for one in asked)  # what chooses is not what is tested on


def test_an_arm_is_what_run_would_have_made(made: tuple[Path, str], tmp_path: Path) -> None:
    """θ_0 is copied from the arm `sft`; made anew, it and all that follows are the same bytes."""
    from sparring.configfile import build_config
    from sparring.job import run_job

    arm = made[0] / "arms" / "stages" / "lr-0.0002" / "seed-0"
    kept = yaml.safe_load((arm / "run.lock.yaml").read_text())["config"]
    again = run_job(build_config({**kept, "runs": str(tmp_path), "name": "again"}))
    for file in (
        "sft/adapter_model.safetensors",
        "1/player/adapter_model.safetensors",
        "1/scores/answers.jsonl",
        "test/best.jsonl",
    ):
        assert (again / file).read_bytes() == (arm / file).read_bytes(), file


def test_again_makes_nothing_anew_and_gives_the_same(made: tuple[Path, str]) -> None:
    folder, _ = made
    before = {p: p.stat().st_mtime_ns for p in folder.glob("arms/**/phase.json")}
    page, numbers = (folder / "report.html").read_bytes(), facts(folder)
    done = run(folder.parents[1])
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.glob("arms/**/phase.json")} == before
    assert facts(folder) == numbers
    assert (folder / "report.html").read_bytes() == page


def test_what_decides_may_not_change_afterwards(made: tuple[Path, str]) -> None:
    folder = made[0].parents[1]
    done = run(folder, primary="exact_kl")
    assert done.returncode != 0
    assert "compare.primary: 'nll', now it is 'exact_kl'" in done.stderr
    assert run(folder, "sft.lr=1e-3").returncode != 0
    done = run(folder, arms=["sft", "continued", "spin-anchor"])
    assert "arms may be added, not left out" in done.stderr
    done = run(folder, seeds=[1, 0])
    assert "seeds may be added behind them" in done.stderr


def test_a_run_without_its_test_is_not_finished_whatever_report_was_written(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(made[0].parents[1], tmp_path / "w")
    folder = tmp_path / "w" / "runs" / "study.compare"
    shutil.rmtree(folder / "arms" / "spin-anchor" / "lr-0.0002" / "seed-1" / "test")
    assert run(tmp_path / "w").returncode == 0
    assert _but_seconds(facts(folder))["arms"] == _but_seconds(facts(made[0]))["arms"]


def _but_seconds(found: dict[str, Any]) -> dict[str, Any]:
    for arm in found["arms"]:
        for one in [arm, *arm["runs"]]:
            del one["budget"]["seconds"], one["whole"]["seconds"]
    return found


def test_killed_at_work_with_two_jobs_it_leaves_no_worker_and_goes_on(tmp_path: Path) -> None:
    """The numbers are those of a study that was never killed and had one job."""
    short = {"arms": ["sft", "continued", "spin"], "target": "spin", "seeds": [0]}
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert run(tmp_path / "whole", **short).returncode == 0
    file = config(tmp_path / "killed", jobs=2, **short)
    process = subprocess.Popen([*COMMAND, str(file)], cwd=tmp_path / "killed", stdout=subprocess.DEVNULL)
    arms = tmp_path / "killed" / "runs" / "study.compare" / "arms"
    _wait(lambda: any(arms.glob("spin/*/seed-0/0")))
    workers = _children(process.pid)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait(lambda: not any(_alive(pid) for pid in workers))
    assert not (arms.parent / "study.json").exists()
    assert run(tmp_path / "killed", jobs=2, **short).returncode == 0
    one, two = facts(tmp_path / "whole" / "runs" / "study.compare"), facts(arms.parent)
    for a, b in zip(one["arms"], two["arms"], strict=True):
        assert a["values"] == b["values"]
        assert a["against"] == b["against"]


def test_preference_pairs_with_dpo_as_the_target(tmp_path: Path) -> None:
    """All arms have the chosen answers, one θ_0 and the test; DPO sets the budget, and every arm chooses alike."""
    asked = {"arms": ["sft", "continued", "spin", "dpo"], "target": "dpo", "seeds": [0], "primary": "exact_kl"}
    done = run(tmp_path, "data.subset=preferences", "dpo.epochs=3", "dpo.beta=0.3", **asked)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "study.compare"
    found = {arm["name"]: arm for arm in facts(folder)["arms"]}
    goal = found["dpo"]["budget"]["flops"]
    for name in ("continued", "spin"):
        assert found[name]["budget"]["flops"] == pytest.approx(goal, rel=0.05)
    runs = [folder / arm["runs"][0]["folder"] for arm in found.values()]
    for name in ("data/train.arrow", "data/eval.arrow", "data/test.arrow", "sft/adapter_model.safetensors"):
        assert len({(one / name).read_bytes() for one in runs}) == 1
    best = [json.loads((one / "best" / "best.json").read_text()) for one in runs]
    assert {one["metric"] for one in best} == {"exact_kl"}
    assert "DPO on the data" in (folder / "report.html").read_text()
    page = (folder / "report.html").read_bytes()
    assert run(tmp_path, "data.subset=preferences", "dpo.epochs=3", "dpo.beta=0.3", **asked).returncode == 0
    assert (folder / "report.html").read_bytes() == page
    done = run(tmp_path, "data.subset=preferences", "dpo.epochs=3", "dpo.beta=0.7", **asked)
    assert "dpo.beta: 0.3, now it is 0.7" in done.stderr


def _wait(ready: Any, seconds: float = 600.0) -> None:
    begun = time.monotonic()
    while not ready():
        assert time.monotonic() - begun < seconds
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        pytest.skip("no /proc here to find a process's children in")
    return [int(one) for one in listed.split()]


def _alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text() and os.kill(pid, 0) is None
    except (OSError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ({"arms": ["spinn"]}, 'did you mean "spin"'),
        ({"primary": "match"}, "evaluation.match"),
        ({"arms": ["dpo"]}, "data.subset=preferences"),
        ({"target": "sft"}, "spends nothing"),
        ({"arms": [{"name": "x", "settings": {"selfplay.sample": 2}}]}, "selfplay.samples"),
        ({"arms": [{"name": "x", "settings": {"selfplay.beta": -1}}]}, "selfplay.beta"),
        ({"seeds": []}, "compare.seeds"),
        ({"seeds": [0, 0]}, "twice"),
    ],
)
def test_refused_before_anything_is_trained(tmp_path: Path, compare: dict[str, Any], said: str) -> None:
    done = run(tmp_path, **compare)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
