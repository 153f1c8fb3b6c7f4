"""study.lock.yaml: what a study was asked for, so that what decides its verdict cannot change once runs are seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sparring.errors import RunError
from sparring.files import sweep, write_atomic
from sparring.folder import differences

Asked = dict[str, Any]


def claim(
    folder: Path, same: dict[str, Any], later: dict[str, Any], asked: Asked, config: dict[str, Any]
) -> list[Asked]:
    """Write the lock, or check that the folder is this study's; returns what was asked for, in order.

    same   settings, base and data that must not change
    later  the same of what only some arms need (a section of theirs, the scorer), which may come with an arm that is
           added; from then on it must not change either
    asked  arms and seeds, which may be added to; nothing that was asked for may be left out, and the order of seeds
           stays, for the first ones choose the learning rates
    """
    path, same, later = folder / "study.lock.yaml", json.loads(json.dumps(same)), json.loads(json.dumps(later))
    history: list[Asked] = []
    if path.exists() and any(folder.glob("arms/**/run.lock.yaml")):  # else nothing was begun
        sweep(folder)
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))
        _scorer_known(folder, kept)
        known = {name: value for name, value in later.items() if name in kept["same"]}
        found = next(differences({**same, **known}, kept["same"]), None)
        if found:
            raise RunError(
                f"{folder} was made with {found[0]}: {found[2]!r}, now it is {found[1]!r}; put it back, or start "
                "another study with name=..."
            )
        history = kept["asked"]
        _only_more(folder, history[-1], asked)
    elif any(one.name not in (".lock", path.name) for one in folder.iterdir()):
        raise RunError(f"{folder} is not a study's folder; give the study another name")
    if not history or not (folder / "study.json").exists():
        history = [*history[:-1], asked]  # nothing was seen of the last request
    elif asked != history[-1]:
        history = [*history, asked]
    same |= later
    write_atomic(
        path, yaml.safe_dump({"same": same, "asked": history, "config": config}, sort_keys=False, allow_unicode=True)
    )
    return history


def _scorer_known(folder: Path, kept: dict[str, Any]) -> None:
    """Refuse the folder of an older version that says nothing of what its scorer was."""
    if "scorer" not in kept["same"] and kept["config"].get("scorer") is not None:
        raise RunError(
            f"{folder} was made with a scorer by an older version, which did not note its content, so it may be "
            "another one now; start another study with name=..."
        )


def _only_more(folder: Path, before: Asked, asked: Asked) -> None:
    lost = [name for name in before["arms"] if name not in asked["arms"]]
    if lost:
        raise RunError(
            f"{folder} has the arm {lost[0]}, which is not asked for any more; arms may be added, not left out, once "
            "they may have been seen: put it back, or start another study with name=..."
        )
    if asked["seeds"][: len(before["seeds"])] != before["seeds"]:
        raise RunError(
            f"{folder} was made with seeds {before['seeds']}, now they are {asked['seeds']}; seeds may be added behind "
            "them, not left out: put them back, or start another study with name=..."
        )
