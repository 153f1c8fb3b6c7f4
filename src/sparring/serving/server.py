"""`sparring serve`: a run's players behind an OpenAI-compatible endpoint, by handing them to a server that exists.

The server is a child of this process, which says when it answers, and ends it with itself.
"""

from __future__ import annotations

import errno
import http.client
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from filelock import FileLock

from sparring.errors import InputError, SparringError
from sparring.serving.behind import HELD
from sparring.serving.engines import Command, Engine, choose
from sparring.serving.guard import KEY, is_loopback
from sparring.serving.models import needed, size
from sparring.serving.shelf import Shelf, open_shelf

Told = Callable[[str], None]

ENDS = 10.0  # seconds that a server has to end by itself
LOOKS = 0.2  # seconds between two looks at it


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for. key: empty: none."""

    engine: str = "auto"
    players: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    key: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be started."""

    shelf: Shelf
    engine: Engine
    why: str
    wishes: Wishes

    def said(self) -> list[str]:
        """What is served, by what, and what is written and held in memory for it."""
        shelf, names = self.shelf, []
        for model in shelf.models:
            names.append(model.name if model.name in (model.player, "base") else f"{model.name} (= {model.player})")
        if shelf.run is None:
            names = [model.name for model in shelf.models]
        written, _ = self.engine.writes(shelf)
        held = f"memory: about {size(shelf.bytes)} for the weights of each model that is in use ({shelf.dtype})"
        lines = [f"engine: {self.engine.name}: {self.why}", f"models: {', '.join(names)}"]
        lines += [f"first:  {written}"] if written else []
        lines += [held, *(f"note:   {note}" for note in shelf.notes)]
        if not shelf.chat:
            lines.append("note:   this model continues plain text: ask /v1/completions; it has no chats")
        return lines


def plan(which: str, runs: Path, wishes: Wishes) -> Plan:
    """Choose the server for a run or a model's folder; nothing is written.

    Raises InputError for a host beyond this machine without a key, a port that is taken, an unknown player, a server
    that is not installed or does not take the players.
    """
    if not is_loopback(wishes.host) and not wishes.key:
        raise InputError(
            f"{wishes.host} is open to other machines, so clients must bring a key; set {KEY}, or serve on 127.0.0.1"
        )
    if any(character.isspace() or not character.isprintable() for character in wishes.key):
        raise InputError(f"the API key holds spaces or control characters, which no client can send; set another {KEY}")
    shelf = open_shelf(which, runs, list(wishes.players))
    engine, why = choose(shelf, wishes.engine)
    _free(wishes.host, wishes.port)
    return Plan(shelf, engine, why, wishes)


def _free(host: str, port: int) -> None:
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
    except socket.gaierror as error:
        raise InputError(f"there is no host {host} ({error.strerror}); give an address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} on {host} is taken; give another with --port") from None
        raise InputError(
            f"{host}:{port} cannot be listened on ({error.strerror}); give another --host or --port"
        ) from None


def command(made: Plan, told: Told | None) -> Command:
    """How the server is started. told: called with what is written for it; None: nothing is."""
    shelf, wishes = replace(made.shelf, told=told), made.wishes
    if told is None:
        return made.engine.command(shelf, wishes.host, wishes.port)
    needed(shelf, made.engine.writes(shelf)[1])
    shelf.place.mkdir(parents=True, exist_ok=True)
    with FileLock(shelf.place / ".lock"):
        return made.engine.command(shelf, wishes.host, wishes.port)


def shown(made: Plan, started: Command) -> str:
    """The command for a shell, without the key."""
    env = [f"{name}={shlex.quote(value)}" for name, value in started.env.items() if value is not None]
    key = [f'{started.key}="${KEY}"'] if made.wishes.key else []
    return " ".join([*env, *key, shlex.join(started.words)])


def serve(made: Plan, started: Command, told: Told) -> None:
    """Run the server until it ends or this process is stopped; raises SparringError if it ends by itself."""
    env = dict(os.environ)
    for name, value in started.env.items():
        env.pop(name, None)
        env |= {} if value is None else {name: value}
    for name in (KEY, started.key):
        env.pop(name, None)
    env |= {HELD: "1"} | ({started.key: made.wishes.key} if made.wishes.key else {})
    with _signals(), _child(started.words, env) as child:
        while not _answers(made.wishes):
            if child.poll() is not None:
                raise SparringError(f"{made.engine.name} ended before it answered (exit code {child.returncode})")
            time.sleep(LOOKS)
        names = ", ".join(model.name for model in made.shelf.models)
        told(f"ready:  {_address(made.wishes)}/v1 · model: {names} · Ctrl-C ends it")
        code = child.wait()
    raise SparringError(f"{made.engine.name} ended by itself (exit code {code})")


@contextmanager
def _child(words: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, so that Ctrl-C is for this one, which ends it and all that it started."""
    try:
        child = subprocess.Popen(words, env=env, stdin=subprocess.PIPE, process_group=0)
    except OSError as error:
        raise InputError(f"{words[0]} cannot be started ({error.strerror}); install it again") from None
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(ENDS)
        with suppress(ProcessLookupError):  # as it should be: none is left
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end this process as Ctrl-C does, with the exit code that a shell expects."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _address(wishes: Wishes) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(wishes.host, wishes.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{wishes.port}"


def _answers(wishes: Wishes) -> bool:
    """Whether the server lists its models."""
    connection = http.client.HTTPConnection(_address(wishes).removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {wishes.key}"} if wishes.key else {})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
