"""Every method through kills and in two processes: the same bytes after a kill, the same result of two processes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sparring.methods import METHODS
from tests.trajectory.arena import KILLED, assert_same, contents
from tests.trajectory.test_processes import assert_one_trajectory

SMALL = {
    **{name: {"r": 4} for name in ("lora", "dora", "rslora", "loraplus", "pissa")},
    **{name: {"length": 3} for name in ("prompt", "prefix")},
}
RATES = {"full": 1e-4, "pissa": 1e-4, "ia3": 1e-2, "prompt": 1e-2, "prefix": 1e-2}


OWN = ("lora", "pissa", "prefix", "full")


def changes(method: str) -> dict[str, Any]:
    """One iteration of a method, with a checkpoint after every second step."""
    rate = RATES.get(method, 1e-3)
    return {
        "method": {"name": method, **SMALL.get(method, {})},
        "selfplay__iterations": 1,
        "selfplay__epochs": 2,
        "sft__lr": rate,
        "selfplay__lr": rate,
    }


@pytest.mark.parametrize("method", METHODS)
def test_killed_while_learning_it_ends_in_the_same_bytes(method: str, arena, unharmed) -> None:
    place = arena(**changes(method))
    assert place.go(act="list").code == 0
    events = place.history
    stops = [
        number
        for number, event in enumerate(events, start=1)
        if re.match(r"rename (sft|0/player)\.partial/checkpoints/staging", event)
        or re.match(r"rename 0/player\.partial$", event)
    ]
    assert len(stops) >= 4, events
    wanted = contents(place.run)
    # all three where what is learnt, or where it begins, is kept in a way of its own; else one of them in turn
    three = [stops[0], stops[-2], stops[-1]]
    for stop in three if method in OWN else [three[[*METHODS].index(method) % 3]]:
        again = arena(**changes(method))
        assert again.go(at=stop).code == KILLED
        assert again.go().code == 0
        assert_same(contents(again.run), wanted)


@pytest.mark.parametrize("method", ["prefix", "houlsby", "full", "pissa"])
def test_two_processes_give_the_result_of_one(method: str, arena) -> None:
    one, two = arena(**changes(method)), arena(**changes(method))
    assert one.go().code == 0
    result = two.go(processes=2)
    assert result.codes == [0, 0], result.err
    assert_one_trajectory(two.run, one.run)
    assert json.loads((one.run / "0/player/phase.json").read_text())["facts"]["steps"] > 2
