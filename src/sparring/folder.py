"""What lies in a run folder: the names of its files, phases' markers, lines of metrics, what a run was made of."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from sparring.errors import RunError
from sparring.files import fingerprint_file, read_json, remove, write_atomic

Event = dict[str, Any]
MARKER = "phase.json"
CLOCK = "clock.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"  # kept, as the clock, until the phase is finished
APPEARS = 60.0  # seconds in which a folder that one process made is seen by another


def read_lines(path: Path) -> Iterator[Event]:
    """The events in a file of metrics, without a line that a kill left incomplete."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def read_marker(folder: Path) -> Event:
    """A phase's marker: its fingerprint from the start, its facts and files when it is finished."""
    return dict(read_json(folder / MARKER)) if (folder / MARKER).exists() else {}


def digests(partial: Path) -> dict[str, str | None]:
    """What a finished phase must hold, apart from its marker: names and digests (none for times)."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    names = [path.relative_to(partial) for path in files]
    kept = [name for name in names if name.parts[0] not in (MARKER, CLOCK, CHECKPOINTS)]
    return {name.as_posix(): fingerprint_file(partial / name) if name.name != METRICS else None for name in kept}


def check_whole(folder: Path, marker: Event) -> None:
    """Raise RunError unless a finished phase has all its files, unchanged."""
    for file in (MARKER, *marker.get("files", {})):
        if not (folder / file).exists():
            raise RunError(f"{folder} has lost {file}; remove the folder to make it again")
    prints = {file: content for file, content in marker["files"].items() if content is not None}
    changed = next((file for file, content in prints.items() if fingerprint_file(folder / file) != content), None)
    if changed is not None:
        raise RunError(f"{folder / changed} has been changed since it was made; remove {folder} to make it again")


def borrow(lent: Path, partial: Path, fingerprint: str) -> None:
    """Copy another run's finished phase, as if it had been made here; RunError if it is not as it was made."""
    marker = read_marker(lent)
    check_whole(lent, marker)
    if read_marker(partial) == {**marker, "fingerprint": fingerprint}:
        return
    remove(partial)
    partial.mkdir(parents=True)
    for name in marker["files"]:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(lent / name, partial / name)
    write_atomic(partial / MARKER, json.dumps({**marker, "fingerprint": fingerprint}))


# What a phase is made from, of all that a run is: settings (their sections), base, data. Self-play's are left out.
_DATA = ("seed", "model", "data", "computed on", "base fingerprint", "data fingerprint", "template fingerprint")
_SFT = (*_DATA, "start", "start fingerprint", "method", "sft", "optimiser")
MADE_FROM = {"data": _DATA, "quantisation": _DATA, "sft": _SFT}
MADE_FROM |= dict.fromkeys(
    ("sft-scores", "base-scores"), (*_SFT, "generation", "evaluation", "rules fingerprint", "reinforce")
)


def lender(folder: Path, same: Event) -> Callable[[str, str], Path | None]:
    """Finished phases in another run's folder that were made as a run of `same` would make them.

    What it returns is asked by a phase's name and the fingerprint of all that it is to be made from. Of a run that is
    not the same in all, phases before self-play are lent whose making is.
    """
    theirs = same_of(folder / "run.lock.yaml")
    mine = json.loads(json.dumps(same))

    def lend(name: str, fingerprint: str) -> Path | None:
        found = folder / name
        if read_marker(found).get("fingerprint") == fingerprint:
            return found
        if name not in MADE_FROM or not found.exists():
            return None
        return found if all(mine.get(part) == theirs.get(part) for part in MADE_FROM[name]) else None

    return lend


def same_of(path: Path) -> Any:
    """What a run folder was made of, from its run.lock.yaml."""
    return lock_of(path)["same"]


def lock_of(path: Path) -> Event:
    """A run folder's run.lock.yaml, which has `same` at the least; RunError if it is damaged."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {"same": found["same"], **found}
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        raise RunError(f"{path} is damaged, so its run cannot go on; start another run with name=...") from None


def differences(mine: Any, theirs: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, my value, their value) of all that differs between two trees."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            yield from differences(mine.get(name), theirs.get(name), f"{key}.{name}" if key else name)
    elif mine != theirs:
        yield key, mine, theirs


def wait_for(folder: Path, rank: int) -> None:
    """Wait until process `rank`, too, sees a phase that was just made: a network file system may be late."""
    begun = time.monotonic()
    while not (folder / MARKER).exists():
        if time.monotonic() - begun > APPEARS:
            raise RunError(
                f"process {rank} does not see {folder}, which process 0 made; put the run folder (runs=...) where all "
                "processes see it under the same path"
            )
        time.sleep(0.1)
