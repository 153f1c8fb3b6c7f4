"""A study's runs carried out: one after the other, or several at once in processes that end with the study."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparring.arms import Arm
from sparring.config import Config
from sparring.errors import LawBroken, RunError, TrainingDiverged
from sparring.job import run_folder, run_job


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a study: its arm, the value tried, the seed, its config.

    start      the folder of the run whose θ_0 it starts from, if it is made in the same way
    forgiving  it is a trial of a value: if learning breaks down, that is a result
    """

    arm: Arm
    value: Any
    seed: int
    config: Config
    start: Path | None = None
    forgiving: bool = False

    @property
    def folder(self) -> Path:
        return run_folder(self.config)

    def __str__(self) -> str:
        shown = f"{self.value:g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.arm.label}{f' {last(self.arm.key)} {shown}' if self.arm.key else ''}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Done:
    """How a run ended; failed: why learning broke down."""

    seconds: float
    failed: str | None = None


def last(key: str | None) -> str:
    """The last part of a dotted key."""
    return str(key).split(".")[-1]


def carry_out(tasks: Sequence[Task], jobs: int, tell: Callable[[Task, Done], None]) -> None:
    """Make some runs, `jobs` at once, and tell of each when it is done. Raises the first error."""
    if jobs == 1:
        for task in tasks:
            tell(task, _run(task))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, max(1, len(tasks))), mp_context=spawn, initializer=_end_with_parent) as pool:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit it: Ctrl-C is for the study
        try:
            running = {pool.submit(_run, task): task for task in tasks}
        finally:
            signal.signal(signal.SIGINT, before)
        try:
            for future in as_completed(running):
                tell(running[future], future.result())
        except BaseException as error:
            for worker in multiprocessing.active_children():  # else leaving waits for the runs in progress
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise RunError(
                    "one of the runs was killed, perhaps for want of memory; the same command goes on from here, and a "
                    "lower compare.jobs needs less"
                ) from None
            raise


def _end_with_parent() -> None:
    """In a worker: end when the study does, however it does."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _run(task: Task) -> Done:
    begun = time.monotonic()
    if _finished(task):
        return Done(0.0)
    try:
        run_job(task.config, like=task.start, command=f"one run of sparring compare: {task}")
    except (TrainingDiverged, LawBroken) as error:
        if not task.forgiving:
            raise
        return Done(time.monotonic() - begun, str(error))
    return Done(time.monotonic() - begun)


def _finished(task: Task) -> bool:
    """Whether a run was brought to its end with this very config, in which no file is named that may have changed.

    The study itself has seen to its own base and data.
    """
    if any(
        key.startswith(("model.", "data.", "evaluation.prompting.rules"))
        for key in (*task.arm.settings, str(task.arm.key))
    ):
        return False
    lock, ends = task.folder / "run.lock.yaml", ("best/phase.json", "test/phase.json", "report.html")
    if not lock.exists() or not all((task.folder / end).exists() for end in ends):
        return False
    kept: Any = yaml.safe_load(lock.read_text(encoding="utf-8"))["config"]
    mine = json.loads(json.dumps(task.config.model_dump(mode="json")))
    return all(kept.get(key) == value for key, value in mine.items() if key not in ("runs", "threads"))
