"""Groups of configs that must give one trajectory: how the work is cut up does not change what is learnt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sparring.data.pairs import Played, Rows
from tests.trajectory.arena import Arena, write_rows


def played(arena: Arena, iteration: int) -> dict[Any, Any]:
    """(prompt, real answer) → the opponent's answers."""
    rows = Rows(sorted((arena.run / f"{iteration}/played").glob("*.arrow")), Played)
    return {(tuple(row.prompt_ids), tuple(row.real_ids)): (row.synthetic_ids, row.finish) for row in rows}


def losses(arena: Arena) -> list[tuple[str, int, float, float]]:
    """(phase, step, loss, learning rate) of every optimiser step."""
    lines = (arena.run / "metrics.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
    return [(step["phase"], step["step"], step["loss"], step["lr"]) for step in steps]


@pytest.fixture(scope="module")
def reference(killer, tmp_path_factory) -> Arena:
    place = Arena(tmp_path_factory.mktemp("reference"), killer, method__dropout=0.0, selfplay__samples=2)
    assert place.go().code == 0
    return place


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser__micro_batch_tokens": 70},
        {"generation__batch_tokens": 50},
        {"generation__shard_size": 1},
        {"optimiser__save_every": 1},
        {"generation__shard_size": 512, "optimiser__save_every": 1000},
        {"optimiser__gradient_checkpointing": True},
        {"threads": 2, "optimiser__micro_batch_tokens": 1, "generation__batch_tokens": 1},
    ],
    ids=lambda changes: "+".join(f"{key.split('__')[-1]}={value}" for key, value in changes.items()),
)
def test_one_trajectory(arena, reference, changes):
    place = arena(method__dropout=0.0, selfplay__samples=2, **changes)
    result = place.go()
    assert result.code == 0, result.err
    found, wanted = losses(place), losses(reference)
    assert [step[:2] for step in found] == [step[:2] for step in wanted]
    assert len(found) > 8
    for one, other in zip(found, wanted, strict=True):
        assert one[2:] == pytest.approx(other[2:], abs=1e-4)
    for iteration in (0, 1):
        assert played(place, iteration) == played(reference, iteration)


def test_row_order_does_not_change_an_answer(arena):
    """theta_0 is the base here, because the order of SFT's steps follows the rows."""
    settings = {"sft__epochs": 0, "selfplay__iterations": 1, "selfplay__samples": 3}
    orders = []
    for order in (0, 1, 2):
        place = arena(**settings)
        write_rows(place.folder / "rows.jsonl", order=order)
        result = place.go()
        assert result.code == 0, result.err
        orders.append(played(place, 0))
    assert orders[0] == orders[1] == orders[2]
    assert list(orders[0]) != list(orders[1])
    assert len(orders[0]) == 18
