"""Kill the real command line at any file event, many times a minute.

Run as a process of its own, this file imports all that a run needs once, and then forks a child per
command it reads: a child starts in milliseconds instead of seconds, and is killed without regret. The
child calls `sparring.cli.main()` with sys.argv set. An audit hook sees every file that is opened for
writing, every folder made, every rename and every removal inside the run folder, just before it happens;
`os.fsync` and `torch.save`, which audit nothing, are wrapped. So the disk is left as it is between any two
events, and, where a write is torn, in the middle of one.

Events are named `<n> <kind> <path>`: the n-th event of that kind on that path in this attempt. The numbers
make steps of one file differ; a chain of kills forgets them (`chain`), so that each place is killed at once.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Which arguments of an audit event are paths, each with the number of the argument that is its dir_fd.
PATHS = {
    "os.mkdir": [(0, 2)],
    "os.rename": [(1, 3)],
    "os.remove": [(0, 1)],
    "os.rmdir": [(0, 1)],
    "os.truncate": [(0, None)],
    "shutil.rmtree": [(0, None)],
}
FAULTS = {"full": errno.ENOSPC, "readonly": errno.EROFS}
HALF_A_LINE = b'{"event": "torn'


def preload() -> None:
    """Import what a run imports, and compute nothing: a fork after a parallel region would hang."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command line has it
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import peft.utils.transformers_weight_conversion  # noqa: F401
    import pydantic.type_adapter  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import torch.utils.serialization.config  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, Trainer  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.models.llama import modeling_llama  # noqa: F401

    import sparring.cli
    import sparring.console
    import sparring.job
    import sparring.report.page  # noqa: F401

    get_checkpoint_conversion_mapping("llama")  # compiles a thousand patterns, and keeps them
    gc.collect()
    gc.freeze()  # a child's collections need not look at what was imported


# ---------------------------------------------------------------- the child


class Watcher:
    """Sees a child's file events inside one folder, and acts at the first that it was told to.

    job     root: the folder; at: when to act (chain: a place not in `history` yet; number: the n-th event
            of the attempt; none); act: kill, torn (write half, then kill), full or readonly
            (the event fails), list
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.root = os.path.realpath(job["root"])
        self.job = job
        self.seen: Counter[str] = Counter()
        self.total = 0
        self.history = Path(job["history"])
        self.places = set(self.history.read_text().splitlines()) if self.history.exists() else set()
        self.busy = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook."""
        if self.busy or (event not in PATHS and event != "open"):
            return
        self.busy = True  # what is done here raises audit events too
        try:
            for path in self.paths(event, arguments):
                appends = event == "open" and arguments[2] & os.O_APPEND
                self.meet("append" if appends else event.removeprefix("os.").removeprefix("shutil."), path)
        finally:
            self.busy = False

    def paths(self, event: str, arguments: tuple[Any, ...]) -> list[str]:
        """The paths that an event writes to."""
        if event == "open":
            path, _, flags = arguments
            writes = bool(flags & WRITES) and isinstance(path, (str, bytes))
            return [os.fsdecode(path)] if writes else []
        found = []
        for number, folder in PATHS[event]:
            path = os.fsdecode(arguments[number]) if not isinstance(arguments[number], int) else ""
            opened = arguments[folder] if folder is not None else -1
            if isinstance(opened, int) and opened >= 0 and not os.path.isabs(path):
                path = os.path.join(os.readlink(f"/proc/self/fd/{opened}"), path)
            found.append(path)
        return found

    def meet(self, kind: str, path: str) -> None:
        """Count an event; act if it is the one."""
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if not path.startswith(self.root + os.sep):
            return
        place = f"{kind} {os.path.relpath(path, self.root)}".replace(str(os.getpid()), "PID")
        self.total += 1
        self.seen[place] += 1
        if self.job["at"] == "chain":
            chosen = place not in self.places and kind in self.job.get("kinds", [kind])
        else:
            chosen = self.job["at"] == self.total
        if self.job["act"] == "list":
            self.note(place)
        elif chosen:
            self.note(place)
            self.act(kind, path)

    def note(self, place: str) -> None:
        with open(self.history, "a") as file:
            file.write(place + "\n")

    def act(self, kind: str, path: str) -> None:
        act = self.job["act"]
        if act in FAULTS:
            raise OSError(FAULTS[act], os.strerror(FAULTS[act]), path)
        if act == "torn" and kind == "append":
            with open(path, "ab") as file:
                file.write(HALF_A_LINE)
        if act == "torn" and kind in ("fsync", "save"):
            with open(path, "ab") as file:
                file.truncate(os.path.getsize(path) // 2)
        kill()

    def wrap(self, name: str, function: Callable[..., Any], path_of: Callable[..., str]) -> Callable[..., Any]:
        """A function that audits nothing, made an event: before it, and for torn writes after it."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            path = path_of(*args)
            before = function(*args, **kwargs) if self.job["act"] == "torn" else None
            self.busy = True
            try:
                self.meet(name, path)
            finally:
                self.busy = False
            return before if self.job["act"] == "torn" else function(*args, **kwargs)

        return wrapped


def kill() -> NoReturn:
    """As kill -9 from outside."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def child(job: dict[str, Any]) -> NoReturn:
    """Become the command line."""
    import torch

    os.chdir(job["cwd"])
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for target, opened in ((0, nowhere), (1, _file(job["out"])), (2, _file(job["err"]))):
        os.dup2(opened, target)
    signal.alarm(120)  # SIGALRM ends a child that hangs
    watcher = Watcher(job)
    os.fsync = watcher.wrap("fsync", os.fsync, lambda fd: os.readlink(f"/proc/self/fd/{fd}"))
    torch.save = watcher.wrap("save", torch.save, lambda content, path, *_: str(path))
    if job["at"] is not None or job["act"] == "list":
        sys.addaudithook(watcher.hook)
    sys.argv = ["sparring", *job["argv"]]
    code = 0
    try:
        from sparring.cli import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _file(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


# ---------------------------------------------------------------- the parent


def attempt(job: dict[str, Any]) -> dict[str, Any]:
    """Fork a child for one command; returns its exit code, or minus the signal that ended it.

    A job with `line` gets `signal` from outside, `delay` seconds after its output holds that text.
    A job with `processes` gets that many children, as a launcher would start them; what is done to the job is
    done to the process `victim`, and none is ended by the parent.
    """
    count, victim = job.get("processes", 1), job.get("victim", 0)
    places = [{}] if count == 1 else _places(count)
    jobs = [{**job, "out": f"{job['out']}{rank}", "err": f"{job['err']}{rank}"} for rank in range(count)]
    pids = []
    for rank, mine in enumerate(jobs):
        for path in (mine["out"], mine["err"]):
            Path(path).write_text("")
        pids.append(os.fork())
        if pids[-1] == 0:
            os.environ.update(places[rank])
            child(mine if rank == victim else {**mine, "at": None})
    struck = _strike(pids[victim], jobs[0]["out"], job) if job.get("line") is not None else None
    ends = [struck if rank == victim and struck is not None else os.waitpid(pid, 0)[1] for rank, pid in enumerate(pids)]
    codes = [os.waitstatus_to_exitcode(status) for status in ends]
    return {
        "code": codes[0],
        "codes": codes,
        "out": "".join(Path(mine["out"]).read_text() for mine in jobs),
        "err": "".join(Path(mine["err"]).read_text() for mine in jobs),
    }


def _places(count: int) -> list[dict[str, str]]:
    """What a launcher tells each of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    all_ = {**meeting, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**all_, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _strike(pid: int, out: str, job: dict[str, Any]) -> int:
    struck = None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if struck is None and job["line"] in Path(out).read_text():
            struck = time.monotonic() + job["delay"]
        if struck and time.monotonic() >= struck:
            os.kill(pid, job["signal"])
            return os.waitpid(pid, 0)[1]
        time.sleep(0.003)


if __name__ == "__main__":
    preload()
    print("ready", flush=True)
    for request in sys.stdin:
        print(json.dumps(attempt(json.loads(request))), flush=True)
