"""How far people agree, and how far a judge agrees with them: κ by hand, a swayed judge, the file of a real study."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.data.comparisons import majority
from sparring.errors import DataError, InputError
from sparring.evaluation.judges import Choice, Judge
from sparring.evaluation.people import People, agreement, chance, interval, kappa, tables
from sparring.evaluation.trusted import Trust, trust

SHARED = Path(os.environ.get("SPARRING_SHARED", Path(__file__).parents[3] / "shared")) / "data"


def people(file: Path, rows: list[tuple[str, str, str, tuple[int, int, int]]]) -> Path:
    """A file of (question, response1, response2, votes)."""
    lines = [
        {"instruction": ask, "input": "", "response1": a, "response2": b}
        | {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}
        for ask, a, b, votes in rows
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("votes", "said"),
    [((1, 1, 0), 1), ((0, 0, 1), 0), ((0.5, 0.5, 1), 0.5), ((1, 0, 0.5), 0.5), ((1, 0), 0.5), ((1,), 1), ((), None)],
)
def test_majority(votes: tuple[float, ...], said: float | None) -> None:
    assert majority(votes) == said


def test_kappa_is_cohens_and_does_not_depend_on_who_stands_first() -> None:
    """Two say the same on 3 of 4 decided pairs; each says either with ½, so chance is ½ and κ is ½."""
    rows = [("p", 1.0, 1.0), ("p", 1.0, 1.0), ("q", 0.0, 0.0), ("q", 1.0, 0.0)]
    turned = [("p", 1 - a, 1 - b) for _, a, b in rows[:2]] + [("q", a, b) for _, a, b in rows[2:]]
    for said in (rows, turned):
        table = tables(said).sum(axis=0)
        assert float(agreement(table)) == pytest.approx(0.75)
        assert float(chance(table)) == pytest.approx(0.5)
        assert float(kappa(table)) == pytest.approx(0.5)
    assert float(kappa(np.diag([0.0, 0.0, 4.0]))) == 0.0  # all ties: nothing beyond chance can be seen


def test_kappa_with_ties_by_hand() -> None:
    """10 pairs: 6 the same answer, 2 both neither, 1 opposite, 1 a tie against an answer."""
    rows = [("p", 1.0, 1.0)] * 6 + [("p", 0.5, 0.5)] * 2 + [("p", 1.0, 0.0), ("p", 0.5, 1.0)]
    table = tables(rows).sum(axis=0)
    mine, theirs = {"tie": 0.3, "side": 0.35}, {"tie": 0.2, "side": 0.4}
    by_chance = mine["tie"] * theirs["tie"] + 2 * mine["side"] * theirs["side"]
    assert float(chance(table)) == pytest.approx(by_chance)
    assert float(kappa(table)) == pytest.approx((0.8 - by_chance) / (1 - by_chance))


def test_the_interval_resamples_prompts() -> None:
    rows = [(f"p{i}", 1.0, float(i % 4 != 0)) for i in range(80)]
    low, high = interval(tables(rows), agreement) or (0.0, 0.0)
    assert low < 0.75 < high
    assert high - low == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 80) ** 0.5, rel=0.15)
    together = [(f"p{i // 8}", mine, theirs) for i, (_, mine, theirs) in enumerate(rows)]
    assert len(tables(together)) == 10
    assert interval(tables(together[:72]), agreement) is None


def test_how_far_people_agree() -> None:
    found = People.of([(1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (0.5, 0.5, 0.5), (1.0,)])
    assert found is not None
    assert found.pairs == 3
    assert found.agree == pytest.approx((3 + 1 + 3) / 9)
    assert found.decided == pytest.approx(4 / 6)
    assert found.one == pytest.approx(6 / 7)  # of the second row only the odd one out has others who agree
    assert "two of the people agree on 77.8%" in found.text()
    assert People.of([(1.0,), ()]) is None


# ---------------------------------------------------------------- judges


def longer(prompt: str, first: str, second: str) -> Choice:
    return "first" if len(first) > len(second) else "second" if len(second) > len(first) else "tie"


def place(prompt: str, first: str, second: str) -> Choice:
    return "first"


ROWS = [(f"q{i}", "long answer", "short", (1, 1, 2) if i % 4 else (2, 2, 2)) for i in range(40)]


def measured(judge: Judge, file: Path, **more: Any) -> Trust:
    return trust(judge, "rule:mine", file, **more)


def test_a_judge_against_people(tmp_path: Path) -> None:
    asked: list[int] = []
    found = measured(longer, people(tmp_path / "a.jsonl", ROWS), told=asked.append)
    assert (found.pairs, found.prompts, asked[-1]) == (40, 40, 40)
    assert found.agree == found.decided == pytest.approx(0.75)
    assert found.kappa == pytest.approx(0.5)
    assert found.swayed == 0
    assert found.people is not None
    assert found.people.agree == pytest.approx((30 / 3 + 10) / 40)
    assert "it agrees with people beyond chance" in found.text()
    assert "ceiling: two of the people agree on 50.0%" in found.text()
    assert json.loads(json.dumps(found.facts()))["kappa"] == found.kappa


def test_a_judge_of_places_is_found_out(tmp_path: Path) -> None:
    """It says "first" in both orders: all ties, no agreement, and the share of swayed verdicts is 1."""
    found = measured(place, people(tmp_path / "a.jsonl", ROWS))
    assert (found.swayed, found.agree, found.decided, found.kappa) == (1.0, 0.0, 0.5, 0.0)
    assert "its two orders disagreed on 100.0%" in found.text()
    assert found.conclusion.startswith("no agreement beyond chance was seen")


def test_ties_of_people_are_a_verdict_of_their_own(tmp_path: Path) -> None:
    rows = [(f"q{i}", "same size", "size same", (0, 0, 1)) for i in range(12)]
    found = measured(longer, people(tmp_path / "a.jsonl", rows))
    assert (found.agree, found.decided) == (1.0, None)


def test_bad_rows_are_left_out_and_counted_and_few_prompts_have_no_interval(tmp_path: Path) -> None:
    rows = [("q", "answer", "", (1, 1, 1)), ("q", "answer", "an", (1, 1, 1))]
    found = measured(longer, people(tmp_path / "a.jsonl", rows))
    assert (found.pairs, found.left_out, found.kappa_interval) == (1, 1, None)
    assert "1 bad rows were left out" in found.text()
    assert found.conclusion.startswith("too few prompts")


def test_pairs_of_one_person_have_no_ceiling(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [{"question": f"q{i}", "chosen": "a longer one", "rejected": "short"} for i in range(12)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = measured(longer, file)
    assert (found.agree, found.kappa, found.people) == (1.0, 1.0, None)
    assert "how far people agree is not known" in found.text()


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    file = people(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(InputError, match="rule:closer needs a real answer"):
        trust(longer, "rule:closer", file)
    with pytest.raises(DataError, match="does not exist"):
        trust(longer, "rule:longer", tmp_path / "b.jsonl")


@pytest.mark.skipif(not SHARED.exists(), reason="needs real data")
def test_length_against_the_people_of_pandalm() -> None:
    found = measured(longer, SHARED / "pandalm" / "testset-v1.json")
    assert (found.pairs, found.left_out) == (939, 60)
    assert 0.55 < found.agree < 0.65
    assert found.people is not None
    assert found.people.kappa > 0.8
    assert found.conclusion.endswith("less than they do among themselves")
