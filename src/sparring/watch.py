"""Who of several processes is alive: when one dies the others end soon, and one of them says so in a line.

Each process has a thread that looks at the launcher's key-value store a few times a second. A process that
ends with an error of its own leaves word there, and the others end silently. A process that is killed leaves
none: then the roll is called, and who does not answer is dead. The others end at once (`os._exit`), wherever
they are, for the run folder bears it, and waiting in a collective call hears no exception.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, final

TICK = 0.2  # seconds between two looks
ANSWER = 3.0  # seconds in which a living process answers the roll
OWN_ERROR = 1.5  # seconds in which an error that all have makes this process leave by itself, and clean up
SILENCE = 120.0  # seconds without a sign of life after which a process is taken for dead
GOES_ON = "nothing is lost: the same command goes on from here"


@final
class Watch:
    """The eye of one process on the others.

    store  a client of the launcher's store that this object alone uses
    alone  whether the store lives in process 0, not in the launcher
    """

    def __init__(self, store: Any, rank: int, size: int, alone: bool) -> None:
        self._store, self._rank, self._size, self._alone = store, rank, size, alone
        self._stop = threading.Event()
        self._broken: str | None = None
        self._terminated = False
        self._looked = time.monotonic()
        self._sign = (-1, self._looked)  # of the next process: its number, and when it came
        self._pipe: tuple[int, int] | None = None
        self._before: Any = None
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look; a launcher's SIGTERM is heard from now on even inside a collective call."""
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # `_watch` acts on it
        self._thread.start()

    def stop(self) -> None:
        """Look no more: all is done."""
        self._rest()
        if self._pipe:
            signal.signal(signal.SIGTERM, self._before)

    def leave(self, last: Callable[[], object]) -> None:
        """Leave word that this process ends with an error of its own, so that the others end silently.

        last  called when the watch no longer ends this process, and before the others know
        The launcher's SIGTERM, which comes as soon as one of them ended, goes unheard: the error is still to be told.
        """
        self._rest()
        last()
        with suppress(RuntimeError):  # the launcher is gone: nobody is left to read it
            self._store.set("left", str(self._rank))
            self._part(self._size - 1)

    def _rest(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._pipe:
            signal.set_wakeup_fd(-1)

    def broken(self, error: BaseException) -> NoReturn:
        """A collective call failed: find out who is dead, and end."""
        self._broken = " ".join(str(error).split())[:200] or type(error).__name__
        self._thread.join()
        raise error  # the watch was stopped before

    # ------------------------------------------------------------ in the thread

    def _watch(self) -> None:
        while not self._stop.wait(TICK):
            try:
                self._look()
            except RuntimeError:  # the store is gone, and with it whoever kept it
                if self._stop.wait(ANSWER):
                    return
                who = f"process 0 of {self._size}" if self._alone else "the launcher"
                self._end(f"{who} died; {GOES_ON}" if self._rank == int(self._alone) else None)

    def _look(self) -> None:
        self._store.add(f"sign/{self._rank}", 1)
        if self._store.check(["left"]):
            if not self._stop.wait(OWN_ERROR):
                self._end(None, self._size - 1)
            return
        self._hear()
        if self._broken or self._terminated or self._silent():
            self._store.set("roll", "")
        if self._store.check(["roll"]):
            dead = self._call_the_roll()
            self._end(self._words(dead), self._size - 1 - len(dead))

    def _hear(self) -> None:
        """Whether a SIGTERM came."""
        try:
            heard = os.read(self._pipe[0], 64) if self._pipe else b""
        except BlockingIOError:
            return
        self._terminated = self._terminated or signal.SIGTERM in heard

    def _silent(self) -> bool:
        """Whether the next process gave no sign of life for long: a machine lost its power or its network."""
        now = time.monotonic()
        paused, self._looked = now - self._looked > SILENCE / 4, now  # this process itself: then it knows nothing
        count = self._store.add(f"sign/{(self._rank + 1) % self._size}", 0)
        if count != self._sign[0] or paused:
            self._sign = count, now
        return now - self._sign[1] > SILENCE

    def _call_the_roll(self) -> list[int]:
        """The processes that do not answer."""
        self._store.set(f"here/{self._rank}", "")
        until = time.monotonic() + ANSWER
        while True:
            missing = [rank for rank in range(self._size) if not self._store.check([f"here/{rank}"])]
            if not missing or time.monotonic() > until:
                return missing
            time.sleep(TICK / 4)

    def _words(self, dead: list[int]) -> str | None:
        """The line to say; None if another process says it."""
        if self._store.check(["left"]) or self._store.add("spoken", 1) > 1:
            return None
        if dead:
            names = " and ".join(str(rank) for rank in dead)
            return f"process{'es' * (len(dead) > 1)} {names} of {self._size} died; {GOES_ON}"
        if self._broken and not self._terminated:
            return f"the connection between the {self._size} processes broke ({self._broken}); {GOES_ON}"
        return f"stopped; {GOES_ON}"

    def _part(self, others: int) -> None:
        """Be gone; the process that keeps the store lets so many others read it first."""
        gone = self._store.add("gone", int(self._rank > 0))
        until = time.monotonic() + ANSWER
        while self._alone and self._rank == 0 and gone < others and time.monotonic() < until:
            time.sleep(TICK / 4)
            gone = self._store.add("gone", 0)

    def _end(self, words: str | None, others: int | None = None) -> NoReturn:
        if words:
            if sys.stdout.isatty():
                print("\x1b[?25h", end="", flush=True)  # a progress bar hides the cursor
            print(f"error: {words}", file=sys.stderr, flush=True)
        if others is not None:
            self._part(others)
        os._exit(1)
