"""`sparring lab run` around the worlds: its page from its numbers alone, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_cli import call, refused

from sparring.errors import ConfigError, RunError
from sparring.laboratory import tour as tour_module
from sparring.laboratory.bandit import Bandit
from sparring.laboratory.bandit_laws import measure_bandit
from sparring.laboratory.tour import NUMBERS, PAGE, tour
from sparring.report.lab_faults import fault_table
from sparring.report.lab_page import write_page


@pytest.fixture(scope="module")
def bandit() -> dict[str, Any]:
    return measure_bandit(0, Bandit.make(0, 4, 4, 2))


def arithmetic() -> dict[str, Any]:
    rows = {"base": (1.0, 0.3), "θ_0 (SFT)": (0.25, 0.13), "θ_1": (0.24, 0.12)}
    return {"players": {name: {"kl": kl, "template_kl": part} for name, (kl, part) in rows.items()}}


def faults() -> dict[str, Any]:
    lengths = [0.0, 0.0, 0.5, 0.5]

    def outcome(kl: float, z: float) -> dict[str, Any]:
        return {"stopped": None, "readouts": {"sampling z": z, "length law": 0.01, "KL": kl}, "lengths": lengths}

    wrong = {"what": "<b>likeliest</b> answers", "guard": "law 5", "stopped": "law 5", "readout": "sampling z"}
    return {
        "law": [0.0, 0.0, 0.4, 0.6],
        "players": {name: {"kl": kl, "lengths": lengths} for name, kl in (("base", 0.8), ("θ_0", 0.5))},
        "meanings": {"sampling z": "standard deviations", "length law": "total variation", "KL": "nats"},
        "right": [outcome(0.40, -1.0), outcome(0.45, 0.5)],
        "faults": {"greedy negatives": {**wrong, "direction": 1, **outcome(0.6, 30.0), "stopped": "law 5"}},
    }


def test_the_page_stands_alone(bandit: dict[str, Any], tmp_path: Path) -> None:
    numbers = {"seed": 0, "worlds": {"A": bandit, "B": arithmetic(), "C": faults()}}
    write_page(json.loads(json.dumps(numbers)), tmp_path / "lab.html")
    page = (tmp_path / "lab.html").read_text(encoding="utf-8")
    assert page.count("<figure") == page.count("<svg") == 8
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert "<b>likeliest" not in page
    assert "mathdefault" not in page
    assert "prefers-color-scheme: dark" in page
    assert "Theory" in page
    assert "stopped by law 5" in page
    write_page(numbers, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_the_table_marks_what_is_beyond_the_seeds() -> None:
    columns, lines = fault_table(faults())
    assert [name for name, _ in columns] == ["sampling z", "length law", "KL"]
    assert [cell["text"] for cell in lines[0]["cells"]] == ["−1 … 0.5", "0.01", "0.4 … 0.45"]
    assert [cell["moved"] for cell in lines[1]["cells"]] == [True, False, True]
    assert [cell["named"] for cell in lines[1]["cells"]] == [True, False, False]


def test_a_tour_writes_numbers_and_page_and_replaces_only_its_own(
    bandit: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tour_module.WORLDS, "A", ("bandit", lambda folder, seed, say: {**bandit, "asked": seed}))
    out, said = tmp_path / "lab", list[str]()
    assert tour(out, ["A"], 7, say=said.append) == out / PAGE
    assert json.loads((out / NUMBERS).read_text())["worlds"]["A"]["asked"] == 7
    assert "World A" in (out / PAGE).read_text()
    assert "World B" not in (out / PAGE).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab"]
    with pytest.raises(RunError, match="--force"):
        tour(out, ["A"], say=said.append)
    tour(out, ["A"], 8, force=True, say=said.append)
    assert json.loads((out / NUMBERS).read_text())["seed"] == 8
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="not a laboratory's folder"):
        tour(tmp_path / "mine", ["A"], force=True, say=said.append)
    with pytest.raises(ConfigError, match='"D"'):
        tour(tmp_path / "new", ["D"], say=said.append)


def test_bad_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not known" in refused(capsys, "lab", "run", "--worlds", "A,Q", "--out", str(tmp_path / "new"))
    assert "exists" in refused(capsys, "lab", "run", "--out", str(tmp_path))
    assert call("lab", "run", "--seed", "-1") == 2
