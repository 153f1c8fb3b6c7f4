"""Fine-tuning that stops and rolls back: killed at every place around it and gone on with, and by two processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.trajectory.arena import KILLED, Arena, assert_same, assert_same_but_command, contents, write_rows
from tests.trajectory.test_killed import finish_by_chain

# Rates at which what is kept changes on the way, and is not the last.
NLL = {
    "sft__stop": "nll",
    "sft__patience": 1,
    "sft__checks": 10,
    "sft__lr": 2e-3,
    "sft__epochs": 16,
    "sft__schedule": "constant",
    "selfplay__iterations": 0,
    "data__eval_size": 16,
}
MILD = {**NLL, "sft__epochs": 8, "sft__schedule": "cosine"}
SCORED = {**MILD, "sft__lr": 3e-3, "sft__stop": "scorer", "scorer": {"name": "match", "match": "whole"}}
FULL = {**MILD, "sft__lr": 1e-3, "sft__epochs": 10, "method": {"name": "full"}}


def place_of(arena: Any, settings: dict[str, Any]) -> Arena:
    place: Arena = arena(**settings)
    write_rows(place.folder / "rows.jsonl", 48)
    return place


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


def wild(arena: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The contents of a run never killed, in which something was kept, something better too, and gone back to."""
    place = place_of(arena, settings)
    result = place.go()
    assert result.code == 0, result.err
    assert len({check["kept"] for check in events(place.run, "check")}) > 1
    assert len(events(place.run, "rollback")) == 1
    return contents(place.run)


@pytest.mark.parametrize(
    ("kinds", "act", "settings", "least"),
    [
        (["rename", "remove"], "kill", {**NLL, "sft__checks": 20}, 30),
        (["append", "fsync", "save"], "torn", {**NLL, "optimiser__save_every": 7}, 30),
    ],
    ids=["before", "torn"],
)
def test_killed_at_every_place(arena, kinds, act, settings, least):
    place = place_of(arena, settings)
    places = finish_by_chain(place, act, kinds)
    assert len(places) >= least
    assert len({word for one in places for word in one.split() if "kept-" in word}) > 1
    assert act == "torn" or any(one.startswith("remove") and "kept-" in one for one in places)
    assert_same(contents(place.run), wild(arena, settings))
    assert events(place.run, "stop")


@pytest.mark.parametrize("settings", [SCORED, FULL], ids=["scored", "full"])
def test_killed_between_a_check_and_its_checkpoint(arena, settings):
    """A better check whose step is done again after the kill; a rollback that was said, but not finished."""
    settings = {**settings, "optimiser__save_every": 7}
    place, kills = place_of(arena, settings), 0
    for line in ('"step": 12, "steps"', '"event": "check"', '"step": 15, "steps"', '"event": "rollback"'):
        result = place.go("run", "config.yaml", "--json", line=line, delay=0, signal=signal.SIGKILL)
        assert result.code in (KILLED, 0), result.err
        kills += result.code == KILLED
    assert kills >= 2
    assert place.go().code == 0
    assert_same_but_command(contents(place.run), wild(arena, settings))


def test_two_processes_check_as_one(arena):
    settings = {**NLL, "sft__lr": 1.5e-3, "method__dropout": 0.0, "generation__shard_size": 5}
    alone, place = place_of(arena, settings), place_of(arena, settings)
    assert alone.go().code == 0
    result = place.go(processes=2)
    assert result.code == 0, result.err
    one, two = events(alone.run, "check"), events(place.run, "check")
    assert [(check["step"], check["kept"]) for check in two] == [(check["step"], check["kept"]) for check in one]
    assert [check["heldout_nll"] for check in two] == pytest.approx([c["heldout_nll"] for c in one], abs=1e-4)
    (back,), (other,) = events(place.run, "rollback"), events(alone.run, "rollback")
    assert back["kept"] == other["kept"]
    mine, theirs = (load_file(each.run / "sft/adapter_model.safetensors") for each in (place, alone))
    assert max((mine[name] - theirs[name]).abs().max().item() for name in mine) < 1e-4
