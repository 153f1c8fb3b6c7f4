"""One forking killer per test process, and uninterrupted runs to compare with, made once each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trajectory.arena import Arena, Killer, contents, report_without_times


@pytest.fixture(scope="session")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    killer = Killer(tmp_path_factory.mktemp("killer"))
    yield killer
    killer.close()


@pytest.fixture(scope="session")
def unharmed(killer: Killer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """unharmed(**changes): the contents of a run that nothing happened to, and its report without times."""
    made: dict[str, dict[str, Any]] = {}

    def make(**changes: Any) -> dict[str, Any]:
        key = repr(sorted(changes.items()))
        if key not in made:
            arena = Arena(tmp_path_factory.mktemp("unharmed"), killer, **changes)
            result = arena.go()
            assert result.code == 0, result.err
            made[key] = {"contents": contents(arena.run), "report": report_without_times(arena)}
        return made[key]

    return make


@pytest.fixture
def arena(tmp_path: Path, killer: Killer) -> Callable[..., Arena]:
    """arena(**changes): a fresh place with its own base, data and config."""

    def make(**changes: Any) -> Arena:
        return Arena(tmp_path / f"arena{len(list(tmp_path.iterdir()))}", killer, **changes)

    return make
