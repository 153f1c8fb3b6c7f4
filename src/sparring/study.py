"""`sparring compare`: arms × seeds at equal budgets, each an ordinary run, brought together in one table.

    for every seed              θ_0, the arm `sft`; all arms with the same settings of fine-tuning start from it
    target arm                  its learning rate chosen on held-out data; what it spends is the budget
    every other arm             the same grid of learning rates, the target's budget
    test prompts                the same for all arms and seeds; they choose nothing

A study's folder holds its runs (arms/ARM/VALUE/seed-S, each a run folder like any other), `study.lock.yaml`, and what
is brought together: study.json, report.html, report.md, tables. Runs that are finished are not made again.
"""

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
from filelock import FileLock, Timeout

from sparring.allowance import spent_on_play
from sparring.arms import Arm, chosen_arms
from sparring.config import CompareConfig, Config
from sparring.configfile import changed
from sparring.errors import ConfigError, RunError
from sparring.files import read_json, sweep, write_atomic
from sparring.folder import differences
from sparring.job import identify, run_folder, run_job
from sparring.machine import available_threads
from sparring.studied import Ran, bring_together

Say = Callable[[str], None]
LABORATORY_TEST = 300  # prompts


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a study: its arm, the value tried, the seed, and its config."""

    arm: Arm
    value: Any
    seed: int
    config: Config

    @property
    def folder(self) -> Path:
        return run_folder(self.config)

    def __str__(self) -> str:
        tried = f" {str(self.arm.key).split('.')[-1]} {self.value:g}" if self.arm.key else ""
        return f"{self.arm.label}{tried}, seed {self.seed}"


class Study:
    """One comparison in progress."""

    def __init__(self, config: Config, say: Say = print) -> None:
        self.compare = config.compare or CompareConfig()
        self.config, self.say = _with_test(config, self.compare), say
        self.arms = chosen_arms(self.config, self.compare)
        self.folder = study_folder(config)
        self.chosen: dict[str, Any] = {}
        self._done, self._begun = 0, time.monotonic()
        for arm in self.arms:  # what is wrong with a setting is said before anything is trained
            for value in arm.values or [None]:
                self._config(arm, value, self.compare.seeds[0])

    # ------------------------------------------------------------ runs

    def run(self) -> None:
        """Make all runs; each is found again if it is finished, and goes on if it was killed."""
        named = {arm.name: arm for arm in self.arms}
        start, target = named["sft"], named[self.compare.target]
        others = [arm for arm in self.arms if arm.name not in ("sft", target.name)]
        self.say(f"{len(self.arms)} arms, {len(self.compare.seeds)} seeds: {self._count()} runs in {self.folder}")
        self._make([start])
        self._make([target])
        self._make(others)

    def _count(self) -> int:
        tuned, all_seeds = len(self._tuning()), len(self.compare.seeds)
        return sum(tuned * max(1, len(arm.values)) + all_seeds - tuned for arm in self.arms)

    def _tuning(self) -> list[int]:
        return self.compare.seeds[: self.compare.tune_seeds]

    def _make(self, arms: Sequence[Arm]) -> None:
        """Tune some arms on the first seeds, then run them on the others with what was chosen."""
        tuning = self._tuning()
        self._carry_out(
            [self.task(arm, value, seed) for arm in arms for value in arm.values or [None] for seed in tuning]
        )
        for arm in arms:
            self.chosen[arm.name] = self.choose(arm)
        rest = [seed for seed in self.compare.seeds if seed not in tuning]
        self._carry_out([self.task(arm, self.chosen[arm.name], seed) for arm in arms for seed in rest])

    def choose(self, arm: Arm) -> Any:
        """The value of the arm's grid with the best mean on the held-out prompts of the tuning seeds."""
        if not arm.values:
            return None
        means = self.validation(arm)
        best = max(means) if self.compare.primary == "match" else min(means)
        return arm.values[means.index(best)]

    def validation(self, arm: Arm) -> list[float]:
        """The primary metric on held-out prompts for each value of the grid, mean over the tuning seeds."""
        tuning = self._tuning()
        found = [[_best(self.task(arm, value, seed).folder) for seed in tuning] for value in arm.values]
        return [sum(values) / len(values) for values in found]

    def task(self, arm: Arm, value: Any, seed: int) -> Task:
        """One run with its config; the budget is what the target spent with this seed."""
        config = self._config(arm, value, seed)
        if arm.matched and arm.name != self.compare.target:
            target = next(one for one in self.arms if one.name == self.compare.target)
            spent = spent_on_play(
                self.task(target, self.chosen[target.name], seed).folder,
                self._config(target, self.chosen[target.name], seed).selfplay.iterations,
            )
            budget = {"unit": self.compare.match, "amount": max(spent[self.compare.match], 1e-9)}
            config = changed(config, {"selfplay.budget": budget})
        return Task(arm, value, seed, config)

    def _config(self, arm: Arm, value: Any, seed: int) -> Config:
        thinks = arm.settings.get("evaluation.prompting.style") in ("chain_of_thought", "reflection")
        select = "match" if thinks and self.config.evaluation.match else self.compare.primary
        settings = {**arm.settings, "compare": None, "track": [], "seed": seed, "evaluation.select": select}
        if arm.key is not None:
            settings[arm.key] = value
        place = self.folder / "arms" / arm.name / (f"{str(arm.key).split('.')[-1]}-{value}" if arm.key else "")
        threads = self.config.threads or max(1, available_threads() // self.compare.jobs)
        return changed(self.config, {**settings, "runs": str(place), "name": f"seed-{seed}", "threads": threads})

    def _carry_out(self, tasks: Sequence[Task]) -> None:
        if self.compare.jobs == 1:
            for task in tasks:
                self._tell(task, *_run(task, self._start(task)))
            return
        spawn = multiprocessing.get_context("spawn")
        jobs = min(self.compare.jobs, max(1, len(tasks)))
        with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_end_with_parent) as pool:
            running = {pool.submit(_run, task, self._start(task)): task for task in tasks}
            try:
                for future in as_completed(running):
                    self._tell(running[future], *future.result())
            except BaseException as error:
                for worker in multiprocessing.active_children():  # else leaving waits for the runs in progress
                    worker.terminate()
                if isinstance(error, BrokenProcessPool):
                    raise RunError(
                        "one of the runs was killed, perhaps for want of memory; the same command goes on from here, "
                        "and a lower compare.jobs needs less"
                    ) from None
                raise

    def _start(self, task: Task) -> Path | None:
        """The run whose θ_0 this one starts from, if it is made in the same way."""
        start = self.folder / "arms" / "sft" / f"seed-{task.seed}"
        return None if task.arm.name == "sft" else start

    def _tell(self, task: Task, folder: Path, seconds: float) -> None:
        self._done += 1
        best = read_json(folder / "best" / "best.json")
        total = self._count()
        left = (time.monotonic() - self._begun) / self._done * (total - self._done)
        time_left = f"; about {left / 60:.0f} min left" if total > self._done else ""
        value = "" if best["value"] is None else f" {best['metric']} {best['value']:.4f} held out,"
        self.say(f"[{self._done}/{total}] {task}: {best['label']}{value} {seconds:.0f} s{time_left}")

    def ran(self) -> list[Ran]:
        """What was run, arm by arm."""
        found = []
        for arm in self.arms:
            value = self.chosen[arm.name]
            folders = [self.task(arm, value, seed).folder for seed in self.compare.seeds]
            found.append(Ran(arm, value, self.validation(arm) if arm.values else [], folders))
        return found

    # ------------------------------------------------------------ the folder

    def claim(self) -> list[dict[str, Any]]:
        """Write study.lock.yaml, or check that the folder is this study's. Returns what was asked for so far, in order.

        Seeds and arms may be added; what decides the verdict may not change once runs have been seen.
        """
        path = self.folder / "study.lock.yaml"
        compare = self.compare.model_dump(mode="json", exclude={"jobs", "arms", "seeds"})
        same = json.loads(json.dumps({**identify(self.config).same, "compare": compare}))
        same.pop("seed")
        asked = {"arms": [arm.name for arm in self.arms], "seeds": list(self.compare.seeds)}
        history: list[dict[str, Any]] = []
        if path.exists():
            sweep(self.folder)
            kept = yaml.safe_load(path.read_text(encoding="utf-8"))
            found = next(differences(same, kept["same"]), None)
            if found:
                raise RunError(
                    f"{self.folder} was made with {found[0]}: {found[2]!r}, now it is {found[1]!r}; put it back, or "
                    "start another study with name=..."
                )
            history = kept["asked"]
        elif any(one.name != ".lock" for one in self.folder.iterdir()):
            raise RunError(f"{self.folder} is not a study's folder; give the study another name")
        if asked not in history:
            history = [*history, asked]
        content = {"same": same, "asked": history, "config": self.config.model_dump(mode="json")}
        write_atomic(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return history


def study_folder(config: Config) -> Path:
    """Where a study lives: runs/name.compare."""
    folder = run_folder(config)
    return folder.with_name(f"{folder.name}.compare")


def _with_test(config: Config, compare: CompareConfig) -> Config:
    """A study needs a test split that chooses nothing; the judge needs answers to choose by."""
    if compare.primary == "match" and config.evaluation.match is None:
        raise ConfigError("compare.primary is match, but evaluation.match does not say what must match; give it")
    data = config.data
    if data.test or data.test_split or data.test_size:
        return config
    size = LABORATORY_TEST if config.in_laboratory else data.eval_size
    return changed(config, {"data.test_size": size})


def _best(folder: Path) -> float:
    return float(read_json(folder / "best" / "best.json")["value"])


def _end_with_parent() -> None:
    """In a worker: end when the study does, however it does, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _finished(task: Task) -> bool:
    """Whether a run was brought to its end with this very config; the study has seen to base and data."""
    lock = task.folder / "run.lock.yaml"
    if not (task.folder / "report.html").exists() or not lock.exists():
        return False
    kept: Any = yaml.safe_load(lock.read_text(encoding="utf-8"))["config"]
    mine = json.loads(json.dumps(task.config.model_dump(mode="json")))
    return all(kept.get(key) == value for key, value in mine.items() if key not in ("runs", "threads"))


def _run(task: Task, start: Path | None) -> tuple[Path, float]:
    begun = time.monotonic()
    if _finished(task):
        return task.folder, 0.0
    folder = run_job(task.config, like=start, command=f"one run of sparring compare: {task}")
    return folder, time.monotonic() - begun


def run_study(config: Config, say: Say = print, command: str = "") -> Path:
    """The whole comparison; returns its folder. Called again after a kill, it goes on from there."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("a comparison starts its own processes; run it without torchrun, with compare.jobs=N")
    study = Study(config, say)
    study.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(study.folder / ".lock"), timeout=0):
            history = study.claim()
            study.run()
            bring_together(study.folder, study.config, study.compare, study.ran(), history, command)
    except Timeout:
        raise RunError(f"another process is working on {study.folder}; wait for it, or give another name") from None
    return study.folder
