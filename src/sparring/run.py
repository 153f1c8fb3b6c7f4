"""The run folder: phases done once, atomic writes, fingerprints, the lock, the metrics.

Resume is memoisation. `run.once(name, make, *inputs)` returns a finished phase or makes it: `make`
fills a folder under a temporary name that is renamed last. The loop holds no resume code; what a
`make` wants to keep across a kill (checkpoints, finished shards) it finds again in the partial folder.
No fingerprint holds a path, so a run folder can be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from sparring.errors import RunError

Event = dict[str, Any]
MARKER = "phase.json"
CLOCK = "clock.json"


def digest(value: Any) -> str:
    """sha256 of a JSON value, in 16 hex digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, finds the old text or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove(folder: Path) -> None:
    """Delete a folder such that a kill half-way never leaves a part under its own name."""
    if folder.exists():
        doomed = folder.with_name(folder.name + ".doomed")
        if doomed.exists():
            shutil.rmtree(doomed)
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


def read_json(path: Path) -> Any:
    """A JSON file that this project wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Phase:
    """A finished phase: its name, its folder, and the fingerprint of all that it was made from."""

    name: str
    folder: Path
    fingerprint: str

    @property
    def facts(self) -> Event:
        """What `make` returned: counts that the report shows."""
        facts: Event = read_json(self.folder / MARKER)["facts"]
        return facts


class Run:
    """One run folder, locked while open. Use as a context manager.

    listeners get every event; the command line draws progress from them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listeners: list[Callable[[Event], None]] = []
        self.identity = ""
        self._visited: list[Phase] = []
        self._current: tuple[str, Path] | None = None
        self._started = 0.0
        self._lock = FileLock(str(folder / ".lock"))

    def __enter__(self) -> Run:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"another process is working on {self.folder}; wait for it, stop it, or give this run another name"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    # ------------------------------------------------------------ identity

    def claim(self, config: dict[str, Any], facts: dict[str, Any], same: dict[str, Any]) -> None:
        """Write run.lock.yaml, or check that the folder was made with the same settings and inputs.

        same  the part of the config that decides the result, and the fingerprints of base and data
        """
        self.identity = digest(same)
        path = self.folder / "run.lock.yaml"
        if path.exists():
            old = yaml.safe_load(path.read_text(encoding="utf-8"))
            for key, mine, theirs in _differences(json.loads(json.dumps(same)), old["same"]):
                raise RunError(
                    f"{self.folder} was made with {key}: {theirs!r}, now it is {mine!r}; "
                    "put it back, or start another run with name=..."
                )
            return
        # A kill may come before the lock file is there: then the folder holds nothing but `.lock`.
        strange = sorted(p.name for p in self.folder.iterdir() if p.name not in (".lock", path.name + ".tmp"))
        if strange:
            raise RunError(
                f"{self.folder} is not a run folder (it holds {', '.join(strange[:3])}); give the run another name"
            )
        content = {**facts, "config": config, "same": json.loads(json.dumps(same))}
        write_atomic(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    # ------------------------------------------------------------ phases

    def once(self, name: str, make: Callable[..., Event | None], *inputs: Any, **settings: Any) -> Phase:
        """Return the finished phase `name`, or make it by `make(folder, *inputs, **settings)`.

        inputs    phases, or None; settings: JSON values. Both go into the fingerprint, with the run's identity.
        Raises RunError when the finished phase was made from something else, or has lost files.
        """
        sources = [item.fingerprint if isinstance(item, Phase) else item for item in inputs]
        fingerprint = digest([self.identity, name, sources, settings])
        folder = self.folder / name
        if folder.exists():
            phase = self._finished(name, folder, fingerprint)
        else:
            phase = self._make(name, folder, fingerprint, make, inputs, settings)
        return phase

    def _finished(self, name: str, folder: Path, fingerprint: str) -> Phase:
        marker = read_json(folder / MARKER) if (folder / MARKER).exists() else {}
        if marker.get("fingerprint") != fingerprint:
            raise RunError(
                f"{folder} was made from other inputs than this run's; remove it to make it again, "
                "or start another run with name=..."
            )
        lost = [file for file in marker["files"] if not (folder / file).exists()]
        if lost:
            raise RunError(f"{folder} has lost {lost[0]}; remove the folder to make it again")
        phase = Phase(name, folder, fingerprint)
        self._visited.append(phase)
        return phase

    def _make(
        self,
        name: str,
        folder: Path,
        fingerprint: str,
        make: Callable[..., Event | None],
        inputs: tuple[Any, ...],
        settings: dict[str, Any],
    ) -> Phase:
        partial = folder.with_name(folder.name + ".partial")
        stamp = partial / "fingerprint"
        if partial.exists() and (not stamp.exists() or stamp.read_text() != fingerprint):
            remove(partial)
        if not partial.exists():
            partial.mkdir(parents=True)
            write_atomic(stamp, fingerprint)
        self._current = (name, partial)
        self._started = time.monotonic()
        self._gather()
        self.tell({"event": "start", "phase": name})
        facts = make(partial, *inputs, **settings) or {}
        self.log({"event": "phase", **facts, "seconds": self._elapsed()})
        (partial / CLOCK).unlink(missing_ok=True)
        stamp.unlink()
        files = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
        files = [file for file in files if file != MARKER and not file.endswith(".tmp")]
        write_atomic(partial / MARKER, json.dumps({"fingerprint": fingerprint, "facts": facts, "files": files}))
        os.rename(partial, folder)
        self._current = None
        phase = Phase(name, folder, fingerprint)
        self._visited.append(phase)
        self._gather()
        return phase

    # ------------------------------------------------------------ time and metrics

    def tick(self) -> None:
        """Remember the time spent so far in this phase, so that a kill does not lose it."""
        if self._current:
            write_atomic(self._current[1] / CLOCK, json.dumps({"seconds": self._elapsed()}))
            self._started = time.monotonic()

    def _elapsed(self) -> float:
        clock = self._current[1] / CLOCK if self._current else None
        earlier = read_json(clock)["seconds"] if clock and clock.exists() else 0.0
        return round(earlier + time.monotonic() - self._started, 3)

    def log(self, event: Event) -> None:
        """Append an event to the phase's metrics and to the run's, and tell the listeners."""
        if self._current is None:
            raise RuntimeError("an event was logged outside a phase")
        name, partial = self._current
        event = {"event": event["event"], "phase": name, **event}
        line = json.dumps(event) + "\n"
        for path in (partial / "metrics.jsonl", self.folder / "metrics.jsonl"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(line)
        self.tell(event)

    def warn(self, text: str) -> None:
        """A warning that the report repeats; a warning already given in this phase is not given again."""
        if not any(event["event"] == "warning" and event["text"] == text for event in self.events()):
            self.log({"event": "warning", "text": text})

    def events(self) -> list[Event]:
        """What the phase in progress has logged, without a line that a kill left incomplete."""
        if self._current is None:
            return []
        return list(_lines(self._current[1] / "metrics.jsonl"))

    def keep(self, wanted: Callable[[Event], bool]) -> None:
        """Drop from the phase's metrics what is not `wanted`: a resumed phase tells it again."""
        if self._current:
            path = self._current[1] / "metrics.jsonl"
            kept = [json.dumps(event) + "\n" for event in _lines(path) if wanted(event)]
            write_atomic(path, "".join(kept))
            self._gather()

    def tell(self, event: Event) -> None:
        """Send an event to the listeners only."""
        for listener in self.listeners:
            listener(event)

    def _gather(self) -> None:
        """Write the run's metrics.jsonl anew from its phases', in the order in which they came."""
        parts = [phase.folder for phase in self._visited] + ([self._current[1]] if self._current else [])
        lines = [json.dumps(event) + "\n" for part in parts for event in _lines(part / "metrics.jsonl")]
        write_atomic(self.folder / "metrics.jsonl", "".join(lines))


def _lines(path: Path) -> Iterator[Event]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _differences(mine: Any, theirs: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            yield from _differences(mine.get(name), theirs.get(name), f"{key}.{name}" if key else name)
    elif mine != theirs:
        yield key, mine, theirs


@contextmanager
def written(path: Path) -> Iterator[Any]:
    """A binary file that appears under `path` only when it is whole; nothing is left behind by a kill
    but a `.tmp` that the next try replaces."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
