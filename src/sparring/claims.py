"""Whose a run folder is: run.lock.yaml says with what it was made, and nothing else may go on with it.

`same` is the part of the config that decides the result, and the fingerprints of base and data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sparring.errors import RunError
from sparring.files import remove, sweep, write_atomic
from sparring.folder import MARKER, differences, same_of


def claim(folder: Path, config: dict[str, Any], facts: dict[str, Any], same: dict[str, Any]) -> None:
    """Write run.lock.yaml, or raise RunError if the folder was made with other settings or inputs.

    As long as nothing was trained, a corrected config may have the folder.
    """
    path = folder / "run.lock.yaml"
    if path.exists():
        sweep(folder)
        found = difference(folder, same)
        if found and _trained(folder):
            raise RunError(f"{folder} was made with {found}; put it back, or start another run with name=...")
        if found:
            remove(folder / "data")
    else:
        _only_mine(folder, path)
    content = {**facts, "config": config, "same": json.loads(json.dumps(same))}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def difference(folder: Path, same: dict[str, Any]) -> str | None:
    """The first setting or input that differs from those the folder was made with, in words."""
    path = folder / "run.lock.yaml"
    if not path.exists():
        return None
    found = next(differences(json.loads(json.dumps(same)), same_of(path)), None)
    return found and f"{found[0]}: {found[2]!r}, now it is {found[1]!r}"


def _trained(folder: Path) -> bool:
    """Whether the folder holds anything that took work: a phase beyond the data, or a checkpoint."""
    kept = [p for p in folder.rglob(MARKER) if p.parent.name != "data" and p.parent.suffix != ".partial"]
    return bool(kept) or any(folder.rglob("checkpoint-*"))


def _only_mine(folder: Path, lock: Path) -> None:
    """Refuse a folder that is not a run's; a kill may have come before the lock file was there."""
    strange = sorted(p.name for p in folder.iterdir() if p.name not in (".lock", lock.name + ".tmp"))
    if strange:
        raise RunError(f"{folder} is not a run folder (it holds {', '.join(strange[:3])}); give the run another name")
