"""`sparring dpo`, killed anywhere and given again: the bytes of a run that was never killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparring.laboratory import world
from tests.trajectory.arena import KILLED, Arena, assert_same, contents

VERB = ("dpo", "config.yaml")


@pytest.fixture
def pairs(arena: Any) -> Any:
    """pairs(**changes): an arena whose rows are preference pairs, one in six a tie told as halves."""

    def make(**changes: Any) -> Arena:
        place: Arena = arena(data__ties="half", **changes)
        rows = []
        for number, row in enumerate(world.rows(0, 24, 0)[0]):
            votes = (0, 0, 1) if number % 6 == 0 else (2, 2, 1)
            rows.append(
                {"instruction": row["prompt"], "response1": row["completion"] * 2, "response2": row["completion"]}
                | {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}
            )
        (place.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return place

    return make


CHANGES: dict[str, Any] = {
    "dpo": {"lr": 1e-3, "batch_size": 6, "epochs": 2, "anchor": 0.1, "label_smoothing": 0.1},
    "data__render": "text",
}


def test_killed_before_every_renaming(pairs: Any) -> None:
    unharmed = pairs(**CHANGES)
    assert unharmed.go(*VERB).code == 0
    place = pairs(**CHANGES)
    for _ in range(300):
        result = place.go(*VERB, at="chain", act="kill", kinds=["rename"])
        if result.code == 0:
            break
        assert result.code == KILLED, result.err
    assert result.code == 0
    assert len(place.history) >= 40
    assert_same(contents(place.run), contents(unharmed.run))
    facts = json.loads((place.run / "0" / "pairs" / "phase.json").read_text())["facts"]
    assert facts["flipped"] == 0.1


def test_another_rule_for_ties_is_another_run(pairs: Any) -> None:
    place = pairs(**CHANGES)
    assert place.go(*VERB).code == 0
    assert "data.ties: 'half', now it is 'drop'" in place.go(*VERB, "data.ties=drop").sentence
    assert "dpo.beta: 0.1, now it is 0.2" in place.go(*VERB, "dpo.beta=0.2").sentence


def test_the_section_dpo_is_for_its_verb(pairs: Any) -> None:
    place = pairs(**CHANGES)
    assert "the section dpo is for another verb: use `sparring dpo`" in place.go("run", "config.yaml").sentence
    assert not Path(place.run).exists()


def test_data_of_another_kind_are_refused_in_one_sentence(arena: Any) -> None:
    place = arena()
    said = place.go(*VERB).sentence
    assert "has the columns" in said
    assert "which fit no format; name them in data.columns (known: chosen_rejected: chosen, rejected;" in said
