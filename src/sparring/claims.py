"""Whose a run folder is: run.lock.yaml says with what it was made, and nothing else may go on with it.

`same` is the part of the config that decides the result, and the fingerprints of base and data. A `scorer` may be added
to a run, or left out, but what one has judged is not gone on with by another.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sparring.errors import RunError
from sparring.files import remove, sweep, write_atomic
from sparring.folder import MARKER, Event, differences, lock_of, same_of


def claim(folder: Path, config: Event, facts: Event, same: Event, scorer: Event | None = None) -> None:
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
        before = lock_of(path).get("scorer")
        if scorer and before and scorer["fingerprint"] != before["fingerprint"] and _scored(folder):
            raise RunError(_another(folder, before, scorer))
        scorer = scorer or before
    else:
        _only_mine(folder, path)
    said = {"scorer": scorer} if scorer else {}
    content = {**facts, **said, "config": config, "same": json.loads(json.dumps(same))}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def difference(folder: Path, same: dict[str, Any]) -> str | None:
    """The first setting or input that differs from those the folder was made with, in words."""
    path = folder / "run.lock.yaml"
    if not path.exists():
        return None
    mine, theirs = json.loads(json.dumps(same)), same_of(path)
    found = next(differences(mine, theirs), None)
    if found is None:
        return None
    key, now, then = found
    before = f"{key}: {then!r}" if _has(theirs, key) else f"the default of {key}"
    return f"{before}, now it is {f'{now!r}' if _has(mine, key) else 'the default'}"


def _has(tree: Any, key: str) -> bool:
    """Whether a tree has a dotted key: one that came later is left out where it has its default."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _another(folder: Path, before: Event, now: Event) -> str:
    """Why another scorer is refused."""
    was, said = (yaml.safe_dump(one["settings"], default_flow_style=True, width=1000).strip() for one in (before, now))
    how = f"the scorer {was}, now it is {said}" if was != said else f"the scorer {was}, whose content has changed since"
    return f"the players in {folder} were judged by {how}; put it back, or start another run with name=..."


def _scored(folder: Path) -> bool:
    """Whether a finished phase holds what a scorer said."""
    return any(p.parent.suffix != ".partial" for p in folder.rglob("rewards.*"))


def _trained(folder: Path) -> bool:
    """Whether the folder holds anything that took work: a phase beyond the data, or a checkpoint."""
    kept = [p for p in folder.rglob(MARKER) if p.parent.name != "data" and p.parent.suffix != ".partial"]
    return bool(kept) or any(folder.rglob("checkpoint-*"))


def _only_mine(folder: Path, lock: Path) -> None:
    """Refuse a folder that is not a run's; a kill may have come before the lock file was there."""
    strange = sorted(p.name for p in folder.iterdir() if p.name not in (".lock", lock.name + ".tmp"))
    if strange:
        raise RunError(f"{folder} is not a run folder (it holds {', '.join(strange[:3])}); give the run another name")
