"""A comparison along an axis through the real command line: its folder, where θ_0 comes from, kills, refusals."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.trajectory.test_study import COMMAND, SMALL

pytestmark = pytest.mark.slow
SHORT = {
    **SMALL,
    "data": {"train": "laboratory", "split": "[:48]", "eval_limit": 16, "test_size": 20},
    "sft": {"epochs": 1},
    "selfplay": {"iterations": 1, "beta": 1.0},
}
AXIS = ("--axis", "method=lora,full")


def config(folder: Path, **compare: Any) -> Path:
    asked = {"seeds": [0, 1], "primary": "exact_kl", "lr": [2e-4], "sft_lr": [1e-3, 3e-3], **compare}
    file = folder / "methods.yaml"
    file.write_text(yaml.safe_dump({**SHORT, "compare": asked}))
    return file


def run(folder: Path, *words: str, **compare: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, str(config(folder, **compare)), *words], cwd=folder, capture_output=True, text=True
    )


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / "methods.compare" / "study.json").read_text())
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("axis")
    done = run(folder, *AXIS)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_quality_and_costs_of_every_arm_are_told(made: tuple[Path, str]) -> None:
    folder, said = made
    found = facts(folder)
    arms = {arm["name"]: arm for arm in found["arms"]}
    assert list(arms) == ["lora-sft", "lora", "full-sft", "full"]
    assert found["axis"] == {"key": "method", "pairs": [["lora-sft", "lora"], ["full-sft", "full"]]}
    assert "[1/10] lora SFT" in said
    for row in ("lora SFT", "lora self-play", "full SFT", "full self-play", found["headline"]):
        assert row in said
    for name, arm in arms.items():
        costs = arm["costs"]
        weights = "model" if name.startswith("full") else "adapter_model"
        home = folder / "runs" / "methods.compare" / arm["runs"][0]["folder"]
        player = home / ("sft" if name.endswith("-sft") else "0/player")
        assert costs["disk_bytes"] == (player / f"{weights}.safetensors").stat().st_size
        assert costs["memory_bytes"] > 2**20
        assert costs["learn_tokens_per_second"] > 0
        assert (costs["play_tokens_per_second"] is None) == name.endswith("-sft")
    assert arms["lora"]["costs"]["trainable"] < arms["full"]["costs"]["trainable"] == 109_696


def test_comparisons_are_with_the_first_value_and_with_its_own_sft(made: tuple[Path, str]) -> None:
    found = facts(made[0])
    against = {arm["name"]: list(arm["against"]) for arm in found["arms"]}
    assert against == {"lora-sft": [], "lora": ["lora-sft"], "full-sft": ["lora-sft"], "full": ["lora", "full-sft"]}
    assert set(found["family"]) == {"lora vs lora-sft", "full-sft vs lora-sft", "full vs lora", "full vs full-sft"}
    assert all(
        row["exact_kl"]["holm"] >= row["exact_kl"]["p"] for arm in found["arms"] for row in arm["against"].values()
    )


def test_self_play_starts_from_the_theta_0_of_its_own_method(made: tuple[Path, str]) -> None:
    arms = made[0] / "runs" / "methods.compare" / "arms"
    for arm in facts(made[0])["arms"][::2]:
        place = arms / arm["name"] / f"lr-{arm['grid']['chosen']}"
        (other,) = (arms / arm["name"].removesuffix("-sft")).iterdir()
        for seed in (0, 1):
            one, two = (folder / f"seed-{seed}" / "sft" for folder in (place, other))
            (weights,) = one.glob("*.safetensors")
            assert weights.read_bytes() == (two / weights.name).read_bytes()


def test_killed_it_goes_on_to_the_same_numbers(made: tuple[Path, str], tmp_path: Path) -> None:
    process = subprocess.Popen([*COMMAND, str(config(tmp_path)), *AXIS], cwd=tmp_path, stdout=subprocess.DEVNULL)
    begun = time.monotonic()
    while not any((tmp_path / "runs" / "methods.compare" / "arms").glob("lora/*/seed-0/0")):
        assert time.monotonic() - begun < 300
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(tmp_path, *AXIS).returncode == 0
    one, two = facts(made[0]), facts(tmp_path)
    for a, b in zip(one["arms"], two["arms"], strict=True):
        assert a["values"] == b["values"]
        assert a["against"] == b["against"]
        assert a["grid"] == b["grid"]
        assert a["costs"]["trainable"] == b["costs"]["trainable"]


def test_values_may_be_added_behind_but_not_left_out(made: tuple[Path, str]) -> None:
    done = run(made[0], "--axis", "method=lora,dora")
    assert done.returncode != 0
    assert "has the arm full-sft, which is not asked for any more" in done.stderr
    done = run(made[0], "--axis", "method=full,lora")
    assert "compare.reference: 'lora', now it is 'full'" in done.stderr


@pytest.mark.parametrize(
    ("axis", "compare", "said"),
    [
        ("method=lora,lorra", {}, 'did you mean "lora"'),
        ("method=lora", {}, "two or more"),
        ("selfplay.bta=1,2", {}, "selfplay.beta"),
        ("data.test_size=10,20", {}, "must share"),
        ("method", {}, "key=value"),
        ("method=lora,dora", {"arms": ["spin"]}, "compare.arms"),
    ],
)
def test_refused_before_anything_is_trained(tmp_path: Path, axis: str, compare: dict[str, Any], said: str) -> None:
    done = run(tmp_path, "--axis", axis, **compare)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
