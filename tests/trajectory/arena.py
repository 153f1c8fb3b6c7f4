"""A place to fight in: a tiny base, tiny data, configs; commands through the forking killer; bytes to compare."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sparring import laboratory
from sparring.laboratory import world

KILLED = -signal.SIGKILL
SCRIPT = Path(sys.executable).with_name("sparring")
MAIN = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-c", "from sparring.cli import main; main()"]
KILLER = Path(__file__).with_name("killer.py")

CONFIG: dict[str, Any] = {
    "runs": "runs",
    "name": "r",
    "threads": 1,
    "model": {"base": "base", "device": "cpu"},
    "data": {"train": "rows.jsonl", "eval_size": 6},
    "method": {"r": 4, "dropout": 0.1},
    "sft": {"batch_size": 6, "lr": 2e-3},
    "selfplay": {
        "iterations": 2,
        "previous": 1.0,
        "batch_size": 10,
        "lr": 1e-3,
        "checks_per_iteration": 2,
        "stop_nll_rise": 100.0,
        "stop_real_drop": 100.0,
    },
    "generation": {"shard_size": 10},
    "optimiser": {"save_every": 2},
    "evaluation": {"show": 2},
}


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with some keys (`a.b`) changed."""
    copy: dict[str, Any] = json.loads(json.dumps(tree))
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = copy
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return copy


def write_rows(path: Path, count: int = 24, order: int = 0) -> None:
    """Prompts of the laboratory's world with real answers; `order` shuffles the lines."""
    rows = world.rows(0, count, 0)[0]
    if order:
        random.Random(order).shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass
class Result:
    """How a command ended; code: exit code, or minus a signal; codes: of each of its processes."""

    code: int
    out: str
    err: str
    codes: list[int] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """The one sentence on standard error; fails if there is anything else."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        assert "Traceback" not in self.out + self.err
        assert "internal error" not in self.err
        return lines[0].removeprefix("error: ")


@dataclass
class Killer:
    """The forking process of killer.py."""

    scratch: Path
    process: Any = field(init=False)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(KILLER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.scratch,
        )
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, job: dict[str, Any]) -> Result:
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return Result(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process that this object started."""
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


class Arena:
    """A folder with base, rows.jsonl, config.yaml and runs/; a command is always the same words in it."""

    def __init__(self, folder: Path, killer: Killer, **changes: Any) -> None:
        self.folder, self.killer = folder, killer
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(laboratory.base_folder(), folder / "base")
        write_rows(folder / "rows.jsonl")
        self.config(**changes)

    def config(self, **changes: Any) -> None:
        """Write config.yaml; keys with a double underscore for a dot."""
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        (self.folder / "config.yaml").write_text(yaml.safe_dump(merged(CONFIG, dotted)))

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "runs" / "r"

    @property
    def command(self) -> list[str]:
        """The real command, for a process of its own."""
        return [*MAIN, "run", "config.yaml"]

    def go(self, *argv: str, at: Any = None, act: str = "kill", root: Path | None = None, **job: Any) -> Result:
        """Run the command line once; by default `sparring run config.yaml`, undisturbed."""
        return self.killer(
            {
                "argv": list(argv) or ["run", "config.yaml"],
                "cwd": str(self.folder),
                "root": str(root or self.run),
                "at": at,
                "act": act,
                "history": str(self.folder / "history"),
                "out": str(self.folder / "out"),
                "err": str(self.folder / "err"),
                **job,
            }
        )

    @property
    def history(self) -> list[str]:
        """The places at which something was done, or all places when they were only listed."""
        path = self.folder / "history"
        return path.read_text().splitlines() if path.exists() else []


# ---------------------------------------------------------------- bytes


CLOCKED = ("seconds", "memory")  # what another attempt may find different


def timeless(value: Any) -> Any:
    """JSON without its `seconds`, which are the only times a run writes, and peak memory."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in CLOCKED}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def contents(run: Path) -> dict[str, Any]:
    """Every file and folder of a run: bytes, or without times for what holds times.

    The report shows durations: its three timed files are compared apart, by `report_without_times`.
    """
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif name.endswith(".jsonl"):
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif name.endswith(".json"):
            found[name] = timeless(json.loads(path.read_text()))
        elif name in ("report.html", "report.md", "tables/phases.csv"):
            found[name] = "report"
        else:
            found[name] = path.read_bytes()
    return found


def report_without_times(arena: Arena) -> dict[str, bytes]:
    """The report as it is written when every time is 0."""
    copy = arena.folder / "timeless" / "r"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(arena.run, copy)
    for path in copy.rglob("metrics.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text(
            "".join(json.dumps({k: 0.0 if k in CLOCKED else v for k, v in e.items()}) + "\n" for e in events)
        )
    for name in ("report.html", "report.md", "tables/phases.csv"):
        (copy / name).unlink()
    result = arena.go("report", "r", "--runs", "timeless")
    assert result.code == 0, result.err
    return {name: (copy / name).read_bytes() for name in ("report.html", "report.md", "tables/phases.csv")}


def assert_same_but_command(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The same bytes, for a run whose last command was another; run.lock.yaml tells it, and where the run lies."""

    def settled(lock: bytes) -> bytes:
        lines = lock.splitlines()
        return b"\n".join(line for line in lines if not line.startswith((b"command: ", b"  runs: ")))

    locks = {"run.lock.yaml": settled(wanted["run.lock.yaml"])}
    assert_same({**found, "run.lock.yaml": settled(found["run.lock.yaml"])}, {**wanted, **locks})


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Two runs have the same files with the same bytes; says which do not."""
    assert sorted(found) == sorted(wanted)
    different = [name for name in wanted if found[name] != wanted[name]]
    assert not different, {name: (found[name], wanted[name]) for name in different[:2]}
