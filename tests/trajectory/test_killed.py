"""kill -9 at any point, then the same command: the finished run has the bytes of one never killed."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from typing import Any

import pytest

from tests.trajectory.arena import (
    KILLED,
    Arena,
    assert_same,
    assert_same_but_command,
    contents,
    report_without_times,
)

SHORT = {"selfplay__iterations": 1, "data__test_size": 4}
CONTROL = {"selfplay__negatives": "none", "selfplay__budget": {"unit": "steps", "amount": 7}}
STACKED = {"method__dropout": 0.0, "selfplay__hold": "stack", "selfplay__stop_nll_rise": 1e-9}


def finish_by_chain(arena: Arena, act: str, kinds: list[str], code: int = KILLED) -> list[str]:
    """Run again and again, stopping at each place once, until a run gets through; returns the places."""
    for _ in range(1000):
        result = arena.go(at="chain", act=act, kinds=kinds)
        if result.code == 0:
            return arena.history
        assert result.code == code, (arena.history[-1], result.code, result.err)
        if code != KILLED:
            assert result.sentence, arena.history[-1]
    raise AssertionError("the run does not end")


def assert_unharmed(arena: Arena, wanted: dict[str, Any]) -> None:
    """The run is the uninterrupted one, byte for byte; so is its report but for times."""
    assert_same(contents(arena.run), wanted["contents"])
    assert report_without_times(arena) == wanted["report"]


# ---------------------------------------------------------------- at every place


@pytest.mark.parametrize(
    ("kinds", "changes", "least"),
    [
        (["rename"], {}, 60),
        (["open", "append", "save", "mkdir"], SHORT, 80),
        (["remove", "rmdir", "rmtree"], SHORT, 30),
        (["rename"], CONTROL, 50),
    ],
    ids=["renames", "writes", "removals", "control"],
)
def test_killed_before_every_file_event(arena, unharmed, kinds, changes, least):
    place = arena(**changes)
    places = finish_by_chain(place, "kill", kinds)
    assert len(places) >= least
    assert_unharmed(place, unharmed(**changes))


def test_killed_in_the_middle_of_every_write(arena, unharmed):
    place = arena(**STACKED)
    places = finish_by_chain(place, "torn", ["append", "fsync", "save"])
    assert len(places) >= 80
    assert any(event.get("event") == "stop" for event in unharmed(**STACKED)["contents"]["metrics.jsonl"])
    assert_unharmed(place, unharmed(**STACKED))


def test_the_disk_is_full_at_every_write(arena, unharmed):
    place = arena(**SHORT)
    places = finish_by_chain(place, "full", ["open", "append", "mkdir", "save"], code=2)
    assert len(places) >= 80
    assert_unharmed(place, unharmed(**SHORT))


# ---------------------------------------------------------------- at random


def test_killed_once_at_random_events(arena, unharmed):
    """Eight independent kill points among all events, repeated ones too; each run then finishes at once."""
    counted = arena(**SHORT)
    assert counted.go(act="list").code == 0
    events = counted.history
    assert len(events) > 250
    for number in random.Random(0).sample(range(1, len(events)), 8):
        place = arena(**SHORT)
        assert place.go(at=number).code == KILLED
        assert place.history == [events[number - 1]]
        result = place.go()
        assert result.code == 0, (events[number - 1], result.err)
        assert_same(contents(place.run), unharmed(**SHORT)["contents"])


def test_killed_from_outside_in_every_phase(arena, unharmed):
    place, drawn = arena(), random.Random(1)
    phases = ["data", "sft", "base-scores", "0/played", "0/pairs", "0/player", "0/scores", "1/player", "best"]
    for phase in phases:
        line = f'"event": "start", "phase": "{phase}"'
        delay = drawn.uniform(0, 0.05 if phase in ("data", "best") else 0.3)
        result = place.go("run", "config.yaml", "--json", line=line, delay=delay, signal=signal.SIGKILL)
        assert result.code in (KILLED, 0), result.err
    assert place.go().code == 0
    assert_same_but_command(contents(place.run), unharmed()["contents"])


def test_processes_of_their_own_killed_at_random_times(arena, unharmed):
    place, drawn = arena(), random.Random(2)
    for _ in range(3):
        begun = (place.run / "run.lock.yaml").exists()
        process = subprocess.Popen(place.command, cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not begun and process.poll() is None and not (place.run / "run.lock.yaml").exists():
            time.sleep(0.01)
        time.sleep(drawn.uniform(3, 8) if begun else drawn.uniform(0, 1.5))
        process.kill()
        process.communicate(timeout=60)
    result = subprocess.run(place.command, cwd=place.folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert_same(contents(place.run), unharmed()["contents"])


def test_a_killed_run_can_be_moved(arena, unharmed):
    place, elsewhere = arena(), arena()
    line = '"event": "start", "phase": "1/player"'
    assert place.go("run", "config.yaml", "--json", line=line, delay=0.1, signal=signal.SIGKILL).code == KILLED
    moved = elsewhere.folder / "another place" / "r"
    shutil.move(place.run, moved)
    shutil.rmtree(place.folder)
    result = elsewhere.go("run", "config.yaml", "runs=another place")
    assert result.code == 0, result.err
    assert_same_but_command(contents(moved), unharmed()["contents"])
    assert not elsewhere.run.exists()
