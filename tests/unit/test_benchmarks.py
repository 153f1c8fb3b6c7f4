"""The benchmarks run, do the same work on all sides, and end in one line of JSON. No times are looked at."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from benchmarks import common
from benchmarks.material import random_rows, rows_in_order
from benchmarks.settings import Settings

from sparring.data.pairs import Played, write_rows
from sparring.methods import METHODS

ROOT = Path(__file__).parents[2]
KEYS = {"vs_a", "vs_b", "memory_vs_a", "memory_vs_b", "loss_gap", "settings"}

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="the benchmarks' rivals need TRL, which is not here")


def result_of(name: str, *options: str) -> dict[str, Any]:
    """The last line of a benchmark's output."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--model", "micro", "--repeats", "1", "--json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@needs_trl
@pytest.mark.slow
def test_an_iteration_gives_all_sides_the_same_loss_curve() -> None:
    found = result_of("iteration", "--lengths", "12,8,8", "--pairs", "12", "--lr", "0.05")
    assert found.keys() >= KEYS
    assert found["settings"]["lengths"] == [12, 8, 8]
    assert found["loss_gap"] < 1e-3
    curve = found["losses"]["ours"]
    assert len(curve) == 2
    assert curve[0] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(curve[1] - curve[0]) > 0.01, "the player must move, or equal curves show nothing"
    for who in ("a", "b", "ours"):
        assert found["medians"][who]["cpu"] > 0
        assert found["medians"][who]["peak"] > 0
    assert set(found["medians"]["ours"]["parts"]) == {"play", "score", "learn"}
    assert set(found["medians"]["b"]["parts"]) == {"play", "reference", "learn"}


@needs_trl
@pytest.mark.slow
def test_a_step_of_learning_from_rewards_is_the_same_work_for_all() -> None:
    found = result_of("reinforce", "--lengths", "12,1,8", "--pairs", "4", "--step", "2", "--samples", "4")
    assert found["tokens"] == 4 * 4 * 8
    assert len(found["losses"]) == 2
    assert set(found["parts"]) == {"play", "score", "learn"}
    assert found["vs_a"] > 0
    assert found["memory_vs_b"] > 0


def test_rival_b_takes_the_same_pairs_grouped_by_length(tmp_path: Path) -> None:
    settings = Settings("learn", lengths=(9, 6, 6), spread=0.6, pairs=40, step=4)
    write_rows(tmp_path / "played.arrow", random_rows(settings, 100), Played)
    plain, grouped = (rows_in_order(tmp_path, settings, grouped) for grouped in (False, True))
    assert sorted(row.key for row in grouped) == sorted(row.key for row in plain) == list(range(40))
    assert plain != grouped
    assert padded(grouped, 4) < 0.9 * padded(plain, 4)
    equal = replace(settings, spread=0.0)
    write_rows(tmp_path / "played.arrow", random_rows(equal, 100), Played)
    assert rows_in_order(tmp_path, equal, True) == rows_in_order(tmp_path, equal, False)


def padded(rows: list[Played], step: int) -> int:
    """Tokens of all batches as DPOTrainer pads them."""
    longest = [len(row.prompt_ids) + max(len(row.real_ids), len(row.synthetic_ids[0])) for row in rows]
    return sum(2 * step * max(longest[start : start + step]) for start in range(0, len(rows), step))


def test_without_trl_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="need TRL, which is not installed; get it with: pip install"):
        common.compare("learn", "", [])


def test_a_wrong_length_is_refused_in_one_sentence() -> None:
    command = [sys.executable, "-m", "benchmarks.learn", "--lengths", "12,8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "'12,8' is not three numbers of tokens such as 121,288,288" in done.stderr


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="quantised bases need bitsandbytes, which is not here")
def test_quantised_forms_are_all_measured(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import quantised

    sizes = {"layers": 1, "width": 64, "vocabulary": 120, "tokens": 16, "repeat": 1, "threads": 1}
    rows = quantised.main([f"--{name}={size}" for name, size in sizes.items()])
    weights = [row["weights"] for row in rows.values()]
    assert list(rows) == list(quantised.FORMS)
    assert max(weights[1:]) < weights[0]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_every_method_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import methods

    sizes = {"layers": 1, "width": 64, "vocabulary": 1000, "pairs": 1, "repeat": 1, "threads": 1}
    found = methods.main([f"--{name}={size}" for name, size in sizes.items()])
    assert list(found) == list(METHODS)
    assert found["full"]["parameters"] > found["lora"]["parameters"] > found["prompt"]["parameters"]
    assert found["pissa"]["parameters"] == found["lora"]["parameters"]
    assert found["pissa"]["disk"] > 1.9 * found["lora"]["disk"] - 4096
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(found)
