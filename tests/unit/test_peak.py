"""Peak memory of a phase: what is freed before it does not count, what was seen before a kill does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparring import peak

BIG = 192 * 2**20


def test_the_peak_is_of_what_came_after_the_restart() -> None:
    held = bytearray(b"x") * BIG
    of = peak.restart()
    with_it = peak.reached(of)
    del held
    if peak.restart() != "process":
        pytest.skip("the system keeps no account that can be set back")
    without = peak.reached("process")
    assert with_it.bytes - without.bytes > BIG / 2
    more = bytearray(b"x") * BIG
    del more
    assert peak.reached("process").bytes - without.bytes > BIG / 2


def test_without_an_account_that_can_be_set_back_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak, "RESET", tmp_path / "none" / "clear_refs")
    of = peak.restart()
    assert of == "process so far"
    assert peak.reached(of).bytes > 2**20


def test_what_was_seen_before_a_kill_is_kept() -> None:
    of = peak.restart()
    now = peak.reached(of)
    assert peak.reached(of, {"bytes": 2**50, "of": of}).bytes == 2**50
    assert peak.reached(of, {"bytes": 1, "of": of}).bytes >= now.bytes
    assert peak.reached(of, {"bytes": 2**50, "of": "GPU"}).bytes < 2**50  # another kind is no measure
