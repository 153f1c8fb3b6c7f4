"""Several processes give the result of one; if one of them dies the others end with a line, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sparring.config import ModelConfig
from sparring.crew import Crew
from sparring.data.pairs import Pair, Played, Rows
from sparring.errors import ModelError
from sparring.models.base import choose_device
from sparring.watch import SILENCE, Watch
from tests.trajectory.arena import KILLED, Arena, Result

# Learning rates of the size that adapters have: where a gradient is nothing but rounding, Adam moves by the rate.
GENTLE = {"method__dropout": 0.0, "sft__lr": 2e-4, "selfplay__lr": 1e-4}
TWICE = {**GENTLE, "selfplay__samples": 2, "selfplay__batch_size": 17}  # of 18 prompts: the last step has one
SHORT = {**GENTLE, "selfplay__iterations": 1, "selfplay__epochs": 3}
GOES_ON = "nothing is lost: the same command goes on from here"


def steps(run: Path) -> list[dict[str, Any]]:
    """The events of all optimiser steps."""
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "step"]


def assert_one_trajectory(run: Path, wanted: Path) -> None:
    """The same data and answers to the byte; losses, adapters and the opponents' log-probs to rounding."""
    for path in wanted.glob("data/*.arrow"):
        assert (run / path.relative_to(wanted)).read_bytes() == path.read_bytes(), path
    for path in wanted.glob("*/played/*.arrow"):
        for mine, theirs in zip(Rows([run / path.relative_to(wanted)], Played), Rows([path], Played), strict=True):
            assert replace(mine, logprobs=[]) == replace(theirs, logprobs=[])
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    found, expected = steps(run), steps(wanted)
    assert [(step["phase"], step["step"]) for step in found] == [(step["phase"], step["step"]) for step in expected]
    for one, other in zip(found, expected, strict=True):
        assert sorted(one) == sorted(other)
        for name in one.keys() - {"event", "phase", "seconds"}:
            assert one[name] == pytest.approx(other[name], abs=1e-5, rel=1e-5), name
    for path in wanted.rglob("adapter_model.safetensors"):
        tensors, same = load_file(run / path.relative_to(wanted)), load_file(path)
        assert max((tensors[name] - same[name]).abs().max().item() for name in same) < 1e-5, path
    for path in wanted.glob("*/pairs/pairs.arrow"):
        for one, other in zip(Rows([run / path.relative_to(wanted)], Pair), Rows([path], Pair), strict=True):
            assert one.synthetic_ids == other.synthetic_ids
            assert one.opponent_real == pytest.approx(other.opponent_real, abs=1e-4)
            assert one.opponent_synthetic == pytest.approx(other.opponent_synthetic, abs=1e-4)
    assert json.loads((run / "best/best.json").read_text())["player"] in ("sft", "0", "1")


def dead(result: Result, victim: int) -> None:
    """One process was killed; the others ended with one line between them."""
    count = len(result.codes)
    assert result.codes == [KILLED if rank == victim else 1 for rank in range(count)]
    assert result.sentence == f"process {victim} of {count} died; {GOES_ON}"


# ---------------------------------------------------------------- the result of one process


@pytest.fixture(scope="module")
def alone(killer, tmp_path_factory) -> Callable[..., Path]:
    """alone(**changes): what one process makes of it, made once."""
    made: dict[str, Path] = {}

    def make(**changes: Any) -> Path:
        key = repr(changes)
        if key not in made:
            place = Arena(tmp_path_factory.mktemp("alone"), killer, **changes)
            assert place.go().code == 0
            made[key] = place.run
        return made[key]

    return make


@pytest.mark.parametrize("processes", [2, 3])
def test_the_result_of_one_process(arena, alone, processes):
    place = arena(**TWICE)
    result = place.go(processes=processes)
    assert result.codes == [0] * processes, result.err
    assert_one_trajectory(place.run, alone(**TWICE))
    assert not result.err
    assert result.out.count("report: ") == 1
    warned = "share 2 of generation.shard_size" in (place.run / "metrics.jsonl").read_text()
    assert warned == (processes > 2)


def test_from_the_base_pairs_are_the_same_to_the_byte(arena, alone):
    """theta_0 is the base, so all of iteration 0 until learning has the bytes of one process."""
    changes = {**SHORT, "sft__epochs": 0, "selfplay__hold": "merge"}
    place = arena(**changes)
    result = place.go(processes=2)
    assert result.code == 0, result.err
    one, two = alone(**changes), place.run
    for name in ("0/pairs/pairs.arrow", "base-scores/answers.jsonl", "sft-scores/answers.jsonl", "sft/player.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert_one_trajectory(two, one)


def test_a_step_is_dealt_out_evenly():
    items = list(range(20, 0, -1))
    for size in (1, 2, 3, 7, 30):
        dealt = [Crew(rank, size).deal(items) for rank in range(size)]
        assert sorted(item for share in dealt for item in share) == sorted(items)
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    halves = [sum(Crew(rank, 2).deal(items)) for rank in range(2)]
    assert halves == [105, 105]


def test_a_gpu_for_each_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(ModelConfig()) == (torch.device("cuda", 1), torch.bfloat16)
    assert choose_device(ModelConfig(device="cpu")) == (torch.device("cpu"), torch.float32)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ModelError, match="process 2 of this machine has no GPU: it has 2"):
        choose_device(ModelConfig())


# ---------------------------------------------------------------- deaths


@pytest.mark.parametrize("last", [1, 2])
def test_killed_in_play_and_in_learning(arena, alone, last):
    """Two processes, of which one dies; then three, of which the writer dies; then `last` make the rest."""
    place = arena(**SHORT)
    words = ("run", "config.yaml", "--json")
    strike = {"signal": signal.SIGKILL, "delay": 0.0}
    dead(place.go(*words, processes=2, victim=1, line='"start", "phase": "0/played"', **strike), 1)
    assert not (place.run / "0/pairs").exists()
    dead(place.go(*words, processes=3, victim=0, line='"phase": "0/player", "step": 1', **strike), 0)
    assert (place.run / "0/player.partial").exists()
    result = place.go(processes=last)
    assert result.code == 0, result.err
    assert_one_trajectory(place.run, alone(**SHORT))


@pytest.mark.parametrize("act", ["kill", "full"])
def test_the_writer_fails_in_the_middle_of_writing(arena, alone, act):
    place = arena(**SHORT)
    counted = place.go(processes=2, at=60, act=act)
    if act == "kill":
        dead(counted, 0)
    else:
        assert counted.codes == [2, 1]
        assert counted.sentence.startswith("the disk is full")
    result = place.go(processes=2)
    assert result.codes == [0, 0], result.err
    assert_one_trajectory(place.run, alone(**SHORT))


def test_what_is_refused_is_said_once(arena):
    place = arena(data__train="missing.jsonl")
    result = place.go(processes=3)
    assert set(result.codes) <= {1, 2}
    assert "missing.jsonl" in result.sentence
    assert not place.run.exists()


def test_silence_is_death_but_a_pause_of_ones_own_is_not(monkeypatch):
    """The other process gives its last sign of life at second 20; at second 500 this one has slept for long."""
    clock = 0.0
    monkeypatch.setattr("sparring.watch.time.monotonic", lambda: clock)
    store = torch.distributed.HashStore()
    watch = Watch(store, 0, 2, alone=True)
    silent = {}
    for second in (*range(200), *range(500, 700)):
        clock = float(second)
        if second <= 20:
            store.add("sign/1", 1)
        silent[second] = watch._silent()
    assert not silent[20 + int(SILENCE)]
    assert silent[20 + int(SILENCE) + 1]
    assert not silent[500]
    assert silent[500 + int(SILENCE) + 1]


# ---------------------------------------------------------------- the real launcher


def launch(place: Arena, processes: int, *words: str) -> subprocess.Popen[str]:
    """torchrun on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.Popen(
        [*launcher, *meeting, "-m", "sparring", "run", "config.yaml", *words],
        cwd=place.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(errors: str) -> list[str]:
    """Our own lines among the launcher's."""
    return [line for line in errors.splitlines() if line.startswith("error: ")]


def process_of(launcher: int, rank: int) -> int:
    """The id of one of the processes that a launcher started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no process {rank}")


def test_torchrun_killed_and_resumed(arena, alone):
    place = arena(**SHORT)
    first = launch(place, 2, "--json")
    assert first.stdout is not None
    struck = 0.0
    for line in first.stdout:
        if not struck and '"phase": "0/player", "step": 1' in line:
            os.kill(process_of(first.pid, 1), signal.SIGKILL)
            struck = time.monotonic()
    _, errors = first.communicate(timeout=150)
    assert first.returncode not in (0, None)
    assert time.monotonic() - struck < 30  # the launcher itself would wait as long before it kills
    assert said(errors) == [f"error: process 1 of 2 died; {GOES_ON}"]
    assert (place.run / "0/player.partial").exists()
    second = launch(place, 2)
    out, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    assert out.count("report: ") == 1
    assert "processes: 2" in (place.run / "run.lock.yaml").read_text()
    assert_one_trajectory(place.run, alone(**SHORT))


def test_torchrun_with_a_bad_config(arena):
    place = arena()
    bad = launch(place, 2, "selfplay.betta=1")
    _, errors = bad.communicate(timeout=150)
    assert bad.returncode not in (0, None)
    assert len(said(errors)) == 1
    assert 'did you mean "selfplay.beta"' in said(errors)[0]
    assert not place.run.exists()
