"""The run folder: phases done once, atomic writes, fingerprints, the lock, the metrics.

Resume is memoisation. `run.once(name, make, *inputs)` returns a finished phase or makes it: `make`
fills a folder under a temporary name that is renamed last. The loop holds no resume code; what a
`make` wants to keep across a kill (checkpoints, finished shards) it finds again in the partial folder.
No fingerprint holds a path, so a run folder can be moved.

Of several processes one writes; the others take part in `make`, and find the finished phase in the same folder.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sparring import peak
from sparring.claims import claim, difference
from sparring.crew import Crew
from sparring.errors import InputError, RunError
from sparring.files import digest, read_json, remove, write_atomic
from sparring.folder import (
    CHECKPOINTS,
    CLOCK,
    MARKER,
    METRICS,
    Event,
    borrow,
    check_whole,
    differences,
    digests,
    read_lines,
    read_marker,
    wait_for,
)

__all__ = ["CHECKPOINTS", "Event", "Phase", "Run"]


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
    lender    gives a finished phase of the same name and making (fingerprint) in another run folder, or None
    crew      the processes that work on it; what only writes or tells does nothing in all but one
    """

    def __init__(self, folder: Path, crew: Crew | None = None) -> None:
        self.folder = folder
        self.crew = crew or Crew()
        self.listeners: list[Callable[[Event], None]] = []
        self.lender: Callable[[str, str], Path | None] = lambda name, fingerprint: None
        self.identity = ""
        self._visited: list[Phase] = []
        self._current: tuple[str, Path] | None = None
        self._started, self._watched = 0.0, ""
        self._lock = FileLock(str(folder / ".lock"))

    def __enter__(self) -> Run:
        if self.crew.writes:
            self._open()
        return self

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise RunError(
                f"{self.folder} cannot be a folder: a file is in its place; give another name=... or runs=..."
            ) from None
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"another process is working on {self.folder}; wait for it, stop it, or give this run another name"
            ) from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.crew.writes:
            return
        if kind is not None and issubclass(kind, InputError):
            self._withdraw()
        self._lock.release()

    def _withdraw(self) -> None:
        """Leave no trace of a run that was refused before anything was made."""
        names = {path.name for path in self.folder.iterdir()}
        if not names <= {".lock", "run.lock.yaml", "metrics.jsonl", "data.partial"}:
            return
        for name in names - {"data.partial"}:
            (self.folder / name).unlink()
        if "data.partial" in names:
            shutil.rmtree(self.folder / "data.partial")
        self.folder.rmdir()

    # ------------------------------------------------------------ identity

    def claim(self, config: Event, facts: Event, same: Event, scorer: Event | None = None) -> None:
        """Write run.lock.yaml, or check that the folder was made with the same settings and inputs.

        same    the part of the config that decides the result, and the fingerprints of base and data
        scorer  what judges the players, with its fingerprint
        """
        self.identity = digest(same)
        self._agree(same)
        if self.crew.writes:
            claim(self.folder, config, facts, same, scorer)

    def _agree(self, same: dict[str, Any]) -> None:
        """Refuse to work on another config, base or data than the writer's."""
        found = next(differences(same, self.crew.decide(lambda: same)), None)
        if found:
            raise RunError(
                f"process {self.crew.rank} has {found[0]}: {found[1]!r}, but process 0 has {found[2]!r}; "
                "give all processes the same config, base and data"
            )

    def difference(self, same: dict[str, Any]) -> str | None:
        """The first setting or input that differs from those the folder was made with, in words."""
        return difference(self.folder, same)

    # ------------------------------------------------------------ phases

    def once(self, name: str, make: Callable[..., Event | None], *inputs: Any, **settings: Any) -> Phase:
        """Return the finished phase `name`, or make it by `make(folder, *inputs, **settings)`.

        inputs    phases, or None; settings: JSON values. Both go into the fingerprint, with the run's identity.
        Raises RunError when the finished phase was made from something else, or has lost files.
        """
        fingerprint = self._made_from(name, inputs, settings)
        folder = self.folder / name
        found = self.crew.decide(folder.exists)
        if not found:
            self._make(name, folder, fingerprint, make, inputs, settings)
        elif self.crew.writes:
            self._verify(folder, fingerprint)
        phase = Phase(name, folder, fingerprint)
        self._visited.append(phase)
        if not found:
            self.gather()
        return phase

    def renew(self, name: str, make: Callable[..., Event | None], *inputs: Any, **settings: Any) -> Phase:
        """`once`, for a phase on which nothing stands: made from other inputs or settings, it is made again."""
        folder = self.folder / name
        made_from = self._made_from(name, inputs, settings)
        if self.crew.writes and folder.exists() and read_marker(folder).get("fingerprint") != made_from:
            remove(folder)
        return self.once(name, make, *inputs, **settings)

    def _made_from(self, name: str, inputs: tuple[Any, ...], settings: dict[str, Any]) -> str:
        sources = [item.fingerprint if isinstance(item, Phase) else item for item in inputs]
        return digest([self.identity, name, sources, settings])

    def _verify(self, folder: Path, fingerprint: str) -> None:
        """Raise RunError unless a finished phase is whole, unchanged, and made from these inputs."""
        marker = read_marker(folder)
        check_whole(folder, marker)
        if marker["fingerprint"] != fingerprint:
            raise RunError(
                f"{folder} was made from other inputs than this run's; remove it to make it again, "
                "or start another run with name=..."
            )

    def _make(
        self,
        name: str,
        folder: Path,
        fingerprint: str,
        make: Callable[..., Event | None],
        inputs: tuple[Any, ...],
        settings: dict[str, Any],
    ) -> None:
        partial = folder.with_name(folder.name + ".partial")
        if self.crew.writes and (lent := self.lender(name, fingerprint)) is not None:
            borrow(lent, partial, fingerprint)
        elif self.crew.writes and read_marker(partial).get("fingerprint") != fingerprint:
            remove(partial)
            partial.mkdir(parents=True)
            write_atomic(partial / MARKER, json.dumps({"fingerprint": fingerprint}))
        self._current = (name, partial)
        self._started, self._watched = time.monotonic(), peak.restart()
        # a kill may come after the last file, and before its renaming
        if self.crew.decide(lambda: "files" not in read_marker(partial)):
            self.keep(lambda event: "step" in event)  # `make` tells all else again
            self.tell({"event": "start", "phase": name})
            facts = make(partial, *inputs, **settings) or {}
            self.crew.barrier()  # nobody reads a checkpoint any more
            if self.crew.writes:
                self.log({"event": "phase", **facts, **self._clock()})
                content = {"fingerprint": fingerprint, "facts": facts, "files": digests(partial)}
                write_atomic(partial / MARKER, json.dumps(content))
        if self.crew.writes:
            (partial / CLOCK).unlink(missing_ok=True)
            remove(partial / CHECKPOINTS)
            os.rename(partial, folder)
        self._current = None
        self.crew.barrier()
        wait_for(folder, self.crew.rank)

    def forget(self, phase: Phase, name: str) -> None:
        """Remove a large file of a finished phase for good; asked again, it is removed already."""
        if not self.crew.writes:
            return
        marker = read_marker(phase.folder)
        if marker["files"].pop(name, None) is not None:
            marker["forgotten"] = sorted({*marker.get("forgotten", []), name})
            write_atomic(phase.folder / MARKER, json.dumps(marker))
        if name in marker.get("forgotten", []):
            (phase.folder / name).unlink(missing_ok=True)

    # ------------------------------------------------------------ time and metrics

    def tick(self) -> None:
        """Remember the time spent so far in this phase, and its peak memory, so that a kill does not lose them."""
        if self._current and self.crew.writes:
            write_atomic(self._current[1] / CLOCK, json.dumps(self._clock()))
            self._started = time.monotonic()

    def _clock(self) -> Event:
        """What another attempt may find different: seconds, and peak memory."""
        clock = self._current[1] / CLOCK if self._current else None
        earlier = read_json(clock) if clock and clock.exists() else {}
        seconds = round(earlier.get("seconds", 0.0) + time.monotonic() - self._started, 3)
        return {"seconds": seconds, "memory": peak.reached(self._watched, earlier.get("memory")).kept()}

    def log(self, event: Event) -> None:
        """Append an event to the phase's metrics and to the run's, and tell the listeners."""
        if self._current is None:
            raise RuntimeError("an event was logged outside a phase")
        if not self.crew.writes:
            return
        name, partial = self._current
        event = {"event": event["event"], "phase": name, **event}
        line = json.dumps(event) + "\n"
        for path in (partial / METRICS, self.folder / METRICS):
            with open(path, "a", encoding="utf-8") as file:
                file.write(line)
        self.tell(event)

    def warn(self, text: str) -> None:
        """A warning that the report repeats; a warning already given in this phase is not given again."""
        given = [event["text"] for event in self._logged() if event["event"] == "warning"]
        if text not in given:
            self.log({"event": "warning", "text": text})

    def events(self) -> list[Event]:
        """What the phase in progress has logged, as the writer knows it."""
        return self.crew.decide(self._logged)

    def _logged(self) -> list[Event]:
        return list(read_lines(self._current[1] / METRICS)) if self._current else []

    def keep(self, wanted: Callable[[Event], bool]) -> None:
        """Drop from the phase's metrics what is not `wanted`: a resumed phase tells it again."""
        if self._current and self.crew.writes:
            path = self._current[1] / METRICS
            kept = [json.dumps(event) + "\n" for event in read_lines(path) if wanted(event)]
            write_atomic(path, "".join(kept))
            self.gather()

    @property
    def phase(self) -> str:
        """The name of the phase in progress."""
        return self._current[0] if self._current else ""

    def tell(self, event: Event) -> None:
        """Send an event to the listeners only."""
        for listener in self.listeners if self.crew.writes else []:
            listener(event)

    def gather(self) -> None:
        """Write the run's metrics.jsonl anew from its phases', in the order in which they came."""
        if not self.crew.writes:
            return
        parts = [phase.folder for phase in self._visited] + ([self._current[1]] if self._current else [])
        lines = [json.dumps(event) + "\n" for part in parts for event in read_lines(part / METRICS)]
        write_atomic(self.folder / METRICS, "".join(lines))
