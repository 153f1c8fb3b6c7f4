"""Whose a run folder is: what may be changed when a run goes on, and what is said of what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparring.claims import claim
from sparring.errors import RunError
from sparring.folder import MARKER

VALID = {"settings": {"name": "validity"}, "fingerprint": "v"}
LONG = {"settings": {"name": "regex", "pattern": "a"}, "fingerprint": "r"}


def given(folder: Path, scorer: dict[str, Any] | None, **same: Any) -> str:
    claim(folder, {"name": "run"}, {"command": "sparring run"}, {"seed": 0, **same}, scorer)
    return (folder / "run.lock.yaml").read_text()


def trained(folder: Path, *files: str) -> None:
    for file in ("sft/" + MARKER, *files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")


def test_what_one_scorer_has_judged_is_not_gone_on_with_by_another(tmp_path: Path) -> None:
    given(tmp_path, VALID)
    trained(tmp_path, "sft-valued/rewards.jsonl")
    kept = given(tmp_path, VALID)
    said = r"judged by the scorer {name: validity}, now it is {name: regex, pattern: a}; put it back"
    with pytest.raises(RunError, match=said):
        given(tmp_path, LONG)
    assert (tmp_path / "run.lock.yaml").read_text() == kept  # a refusal leaves no trace
    with pytest.raises(RunError, match=r"the scorer {name: validity}, whose content has changed since"):
        given(tmp_path, {**VALID, "fingerprint": "other"})
    assert "fingerprint: v" in given(tmp_path, None)  # left out, it is remembered
    with pytest.raises(RunError, match="judged by"):
        given(tmp_path, LONG)


def test_a_scorer_that_has_judged_nothing_may_be_mended(tmp_path: Path) -> None:
    given(tmp_path, VALID)
    trained(tmp_path, "sft-valued.partial/rewards.jsonl")
    assert "fingerprint: r" in given(tmp_path, LONG)


def test_a_default_is_called_one(tmp_path: Path) -> None:
    given(tmp_path, None, reinforce={"beta": 0.1})
    trained(tmp_path)
    with pytest.raises(RunError, match=r"made with the default of reinforce.select, now it is 'nll'; put it back"):
        given(tmp_path, None, reinforce={"beta": 0.1, "select": "nll"})
    with pytest.raises(RunError, match=r"made with reinforce.beta: 0.1, now it is the default"):
        given(tmp_path, None, reinforce={})
