"""A finished study to which arms of other kinds are added, and whose scorer changes, through the real command line."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.trajectory.test_study import COMMAND, SMALL

pytestmark = pytest.mark.slow
FIRST = ["sft", "continued", "spin"]
SCORER = {"name": "function", "path": "worth:score"}


def run(folder: Path, arms: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    compare = {"seeds": [0], "lr": [1e-3], "arms": arms, "target": "spin"}
    data = {**SMALL["data"], "subset": "preferences"}
    (folder / "study.yaml").write_text(yaml.safe_dump({**SMALL, "data": data, **more, "compare": compare}))
    return subprocess.run([*COMMAND, "study.yaml"], cwd=folder, capture_output=True, text=True)


def prints(folder: Path) -> dict[Path, str]:
    """What every phase but the tests was made from."""
    found = {path: json.loads(path.read_text())["fingerprint"] for path in folder.glob("arms/**/phase.json")}
    return {path: one for path, one in found.items() if path.parent.name != "test"}


def test_arms_that_need_a_section_or_a_scorer_can_be_added(tmp_path: Path) -> None:
    """All that was made stays; the tests are made again, for now the scorer judges every arm."""
    assert run(tmp_path, FIRST).returncode == 0
    folder = tmp_path / "runs" / "study.compare"
    before = prints(folder)
    rl = {"samples": 4, "batch_size": 8, "iterations": 1}
    done = run(tmp_path, [*FIRST, "rl"], reinforce=rl)
    assert done.returncode == 0, done.stderr
    assert prints(folder).items() >= before.items()
    study = json.loads((folder / "study.json").read_text())
    assert [arm["name"] for arm in study["arms"]] == [*FIRST, "rl"]
    assert all(0 <= arm["values"]["reward"]["mean"] <= 1 for arm in study["arms"])
    assert any("were added 1 time after" in note for note in study["notes"])
    with (folder / "tables" / "arms.csv").open(encoding="utf-8") as file:
        means = {row["arm"]: row["mean"] for row in csv.DictReader(file) if row["metric"] == "reward"}
    assert all(means[name] for name in (*FIRST, "rl"))
    before = prints(folder)
    done = run(tmp_path, [*FIRST, "rl", "dpo"], reinforce=rl)
    assert done.returncode == 0, done.stderr
    assert prints(folder).items() >= before.items()
    # what came with an arm must not change any more
    assert (
        "reinforce.samples: 4, now it is 3"
        in run(tmp_path, [*FIRST, "rl", "dpo"], reinforce={**rl, "samples": 3}).stderr
    )
    assert (
        "dpo.beta: 0.1, now it is 0.3" in run(tmp_path, [*FIRST, "rl", "dpo"], reinforce=rl, dpo={"beta": 0.3}).stderr
    )
    regex = {"name": "regex", "pattern": "1"}
    assert "was made with scorer" in run(tmp_path, [*FIRST, "rl", "dpo"], reinforce=rl, scorer=regex).stderr
    lock = yaml.safe_load((folder / "study.lock.yaml").read_text())
    assert {"reinforce", "dpo", "scorer"} <= set(lock["same"])


def test_a_scorer_that_only_judges_must_not_change_either(tmp_path: Path) -> None:
    """Nothing learns from it, and nll chooses; but the tables hold what it says of every arm."""
    worth = tmp_path / "worth.py"
    worth.write_text("def score(prompt, answer, real):\n    return len(answer)\n")
    assert run(tmp_path, FIRST, scorer=SCORER).returncode == 0
    folder = tmp_path / "runs" / "study.compare"
    kept = (folder / "study.json").read_bytes()
    worth.write_text("def score(prompt, answer, real):\n    return -len(answer)\n")
    done = run(tmp_path, [*FIRST, "stages"], scorer=SCORER)
    assert done.returncode != 0
    assert "was made with scorer" in done.stderr
    assert "now it is None" in run(tmp_path, FIRST).stderr
    assert (folder / "study.json").read_bytes() == kept
    # an older version did not note its content
    lock = folder / "study.lock.yaml"
    content = yaml.safe_load(lock.read_text())
    del content["same"]["scorer"]
    lock.write_text(yaml.safe_dump(content))
    assert "did not note its content" in run(tmp_path, FIRST, scorer=SCORER).stderr
    content["config"]["scorer"] = None
    lock.write_text(yaml.safe_dump(content))
    assert run(tmp_path, FIRST).returncode == 0
