"""Self-play with all that a scorer does in it: killed and gone on with, and by two processes."""

from __future__ import annotations

import json
import random
import signal

from tests.trajectory.arena import KILLED, Arena, assert_same_but_command, contents

SETTINGS = {
    "scorer": {"name": "regex", "pattern": "[3-9]$"},
    "evaluation__select": "scorer",
    "data__eval_size": 12,
    "selfplay__samples": 2,
    "selfplay__batch_size": 2,
    "selfplay__keep_pairs": "better",
    "selfplay__stop_score_drop": 2,
}


def events(place: Arena, kind: str) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (place.run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


def test_killed_at_random_times(arena):
    whole, place, drawn = arena(**SETTINGS), arena(**SETTINGS), random.Random(7)
    assert whole.go().code == 0
    assert all("reward_difference" in event for event in events(whole, "check"))
    assert len(events(whole, "check")) >= 2
    phases = ("sft-valued", "base-valued", "0/kept", "0/player", "0/valued", "1/kept", "1/player", "1/valued")
    assert {*phases, "best"} <= set(contents(whole.run))
    for phase in phases:
        line, delay = f'"event": "start", "phase": "{phase}"', drawn.uniform(0, 0.2)
        result = place.go("run", "config.yaml", "--json", line=line, delay=delay, signal=signal.SIGKILL)
        assert result.code in (KILLED, 0), result.err
    assert place.go().code == 0
    assert_same_but_command(contents(place.run), contents(whole.run))


def test_killed_between_a_check_and_its_checkpoint(arena):
    """The checks that count towards patience are those of the steps that are not done again."""
    settings = {**SETTINGS, "optimiser__save_every": 3}
    whole, place = arena(**settings), arena(**settings)
    assert whole.go().code == 0
    for _ in range(2):
        result = place.go("run", "config.yaml", "--json", line='"event": "check"', delay=0, signal=signal.SIGKILL)
        assert result.code == KILLED, result.err
    assert place.go().code == 0
    assert_same_but_command(contents(place.run), contents(whole.run))


def test_two_processes_play_as_one(arena):
    alone, place = arena(**SETTINGS), arena(**SETTINGS)
    for each in (alone, place):
        each.config(**SETTINGS, method__dropout=0.0, sft__epochs=0, generation__shard_size=5)
    assert alone.go().code == 0
    result = place.go(processes=2)
    assert result.code == 0, result.err
    for name in ("sft-valued/rewards.jsonl", "0/kept/pairs.arrow"):
        assert (place.run / name).read_bytes() == (alone.run / name).read_bytes(), name
    assert (place.run / "best/best.json").exists()
    assert len(events(place, "check")) == len(events(alone, "check")) > 0
