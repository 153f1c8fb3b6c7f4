"""A tiny base, a folder with data to work in, and adapters made on the one in the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.imports import Made, make_adapter, save_qwen, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 with a ChatML template."""
    return save_qwen(tmp_path_factory.mktemp("base") / "tiny-qwen2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, but for data."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    return tmp_path


@pytest.fixture
def made(base: Path, here: Path) -> Made:
    """made(config, name, **how to save): an adapter that bare PEFT has made on the base."""
    return lambda config, name="given", **saving: make_adapter(base, config, here / name, **saving)
