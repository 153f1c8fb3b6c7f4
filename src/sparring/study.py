"""`sparring compare`: arms × seeds at equal budgets, each an ordinary run, brought together in one table.

    for every seed              θ_0, the arm `sft`; all arms with the same settings of fine-tuning start from it
    target arm                  its learning rate chosen on held-out data; what it spends is the budget
    every other arm             the same grid of learning rates, the target's budget
    the best of n answers       of an arm's players, which are not made again
    test prompts                the same for all arms and seeds; they choose nothing

Along an axis (axis.py) each value has its own θ_0 and grids, and no budget is made equal.

A study's folder holds its runs (arms/ARM/VALUE/seed-S, each a run folder like any other), `study.lock.yaml`, and what
is brought together: study.json, report.html, report.md, tables. Runs that are finished are not made again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sparring.allowance import rounds, spent_on_play
from sparring.arms import Arm, Ran, prefers, rewarded, sections
from sparring.asked import asked_study
from sparring.axis import taken
from sparring.config import Config
from sparring.configfile import changed
from sparring.errors import ConfigError, RunError
from sparring.evaluation.metrics import METRICS
from sparring.files import read_json
from sparring.job import identify, run_folder
from sparring.kinds import kind_of
from sparring.known_arms import LIKELIHOODS
from sparring.ledger import Asked, claim
from sparring.machine import available_threads
from sparring.rewards.build import check_scorer
from sparring.start import settled
from sparring.studied import bring_together
from sparring.verbs import SECTIONS
from sparring.workers import Done, Task, carry_out, last

Say = Callable[[str], None]


class Study:
    """One comparison in progress."""

    def __init__(self, config: Config, say: Say = print) -> None:
        self.config, self.compare, arms = asked_study(settled(config))
        self.say = say
        self.folder = study_folder(config)
        self.chosen: dict[str, Any] = {}
        self.failed: dict[Path, str] = {}
        self._done, self._begun = 0, time.monotonic()
        # every setting of every arm is looked at before anything is trained
        self.arms = [self._checked(arm) for arm in arms]

    def _checked(self, arm: Arm) -> Arm:
        """The arm with its values as the config reads them; one that does not play is given no budget."""
        made = [self._config(arm, value, self.compare.seeds[0]) for value in arm.values or [None]]
        plays = all(rounds(config) > 0 for config in made)
        if not plays and arm.key == "selfplay.lr":
            return replace(arm, key=None, values=[], matched=False)
        values = [reduce(getattr, arm.key.split("."), config) for config in made] if arm.key else []
        return replace(arm, values=values, matched=arm.matched and plays)

    # ------------------------------------------------------------ runs

    def run(self) -> None:
        """Make all runs; each is found again if it is finished, and goes on if it was killed."""
        self.say(f"{len(self.arms)} arms, {len(self.compare.seeds)} seeds: {self._count()} runs in {self.folder}")
        first = [arm for arm in self.arms if arm.after is None]
        ranked = [arm for arm in self.arms if arm.best_of > 1]
        others = [arm for arm in self.arms if arm.after is not None and arm not in ranked]
        budget = [arm for arm in others if arm.name == self.compare.target and arm.matched]
        for wave in (first, budget, [arm for arm in others if arm not in budget], ranked):
            if wave:
                self._make([self._following(arm) for arm in wave])

    def _following(self, arm: Arm) -> Arm:
        """The arm with what was chosen for the one before it."""
        before = self._named(arm.after) if arm.after else None
        if before is not None and before.key is not None:
            choice = self.chosen[before.name]
            values = taken(arm.shares, choice) if arm.shares else arm.values
            return self._with(arm, settings={**arm.settings, before.key: choice}, values=values)
        return arm

    def _named(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def _count(self) -> int:
        tuned, all_seeds = len(self._tuning()), len(self.compare.seeds)
        return sum(tuned * max(1, len(arm.values)) + all_seeds - tuned for arm in self.arms)

    def _tuning(self) -> list[int]:
        return self.compare.seeds[: self.compare.tune_seeds]

    def _make(self, arms: Sequence[Arm]) -> None:
        """Tune some arms on the first seeds, then run them on the others with what was chosen."""
        tuning = self._tuning()
        self._try([self.task(arm, value, seed) for arm in arms for value in arm.values or [None] for seed in tuning])
        while wider := {arm.name: beyond for arm in arms if (beyond := self._beyond(arm)) is not None}:
            arms = [self._wider(arm, wider[arm.name]) if arm.name in wider else arm for arm in arms]
            self._try([self.task(arm, wider[arm.name], seed) for arm in arms if arm.name in wider for seed in tuning])
        for arm in arms:
            self.chosen[arm.name] = self.choose(arm)
        rest = [seed for seed in self.compare.seeds if seed not in tuning]
        left = [self.task(arm, self.chosen[arm.name], seed) for arm in arms for seed in rest]
        carry_out(left, self.compare.jobs, self._tell)

    def _try(self, trials: Sequence[Task]) -> None:
        forgiving = [replace(trial, forgiving=len(trial.arm.values) > 1) for trial in trials]
        carry_out(forgiving, self.compare.jobs, self._tell)

    def _beyond(self, arm: Arm) -> float | None:
        """A value beyond the end of a grid, one more step of it away, if the best lies there and it may be widened."""
        means = self.validation(arm) if arm.widens else []
        if len(means) < 2:
            return None
        place = arm.values.index(self.choose(arm))
        inner = {0: 1, len(means) - 1: len(means) - 2}.get(place)
        if inner is None or means[inner] == means[place]:
            return None
        end = arm.values[place]
        return taken((end / arm.values[inner],), end)[0]

    def _wider(self, arm: Arm, value: float) -> Arm:
        return self._with(arm, widens=arm.widens - 1, values=sorted([*arm.values, value]))

    def _with(self, arm: Arm, **changes: Any) -> Arm:
        """The arm changed, in its place among the arms."""
        self.arms[self.arms.index(arm)] = found = replace(arm, **changes)
        return found

    def choose(self, arm: Arm) -> Any:
        """The value of the arm's grid with the best mean on the held-out prompts of the tuning seeds."""
        if not arm.values:
            return None
        means = self.validation(arm)
        known = [mean for mean in means if mean is not None]
        if not known:
            why = [
                self.failed.get(self.task(arm, value, seed).folder) for value in arm.values for seed in self._tuning()
            ]
            raise RunError(
                f"arm {arm.name}: learning broke down with every value of {arm.key} that was tried ({why[0]})"
            )
        pick = max if METRICS[self.compare.metric].better == "higher" else min
        best = pick(known)
        return arm.values[means.index(best)]

    def validation(self, arm: Arm) -> list[float | None]:
        """The primary metric on held-out prompts for each value of the grid, mean over the tuning seeds.

        None where learning broke down.
        """
        means: list[float | None] = []
        for value in arm.values:
            folders = [self.task(arm, value, seed).folder for seed in self._tuning()]
            broken = any(folder in self.failed for folder in folders)
            means.append(None if broken else sum(_best(folder) for folder in folders) / len(folders))
        return means

    def task(self, arm: Arm, value: Any, seed: int) -> Task:
        """One run with its config; the budget is what the target spent with this seed."""
        config = self._config(arm, value, seed)
        if arm.matched and arm.name != self.compare.target:
            target = self._named(self.compare.target)
            spent = spent_on_play(
                self.task(target, self.chosen[target.name], seed).folder,
                rounds(self._config(target, self.chosen[target.name], seed)),
            )
            budget = {"unit": self.compare.match, "amount": max(spent[self.compare.match], 1e-9)}
            config = changed(config, {"selfplay.budget": budget})
        begun = self.task(self._named(arm.after), self.chosen[arm.after], seed).folder if arm.after else None
        return Task(arm, value, seed, config, begun)

    def _config(self, arm: Arm, value: Any, seed: int) -> Config:
        thinks = arm.settings.get("evaluation.prompting.style") in ("chain_of_thought", "reflection")
        unlikely = thinks and self.compare.primary in LIKELIHOODS
        select = "match" if unlikely and self.config.evaluation.match else self.compare.primary
        others = dict.fromkeys(name for name in SECTIONS if name not in sections(arm))
        settings = {**others, **arm.settings, "compare": None, "track": [], "seed": seed, "evaluation.select": select}
        settings |= {"dpo.select": select} if prefers(arm) else {}
        settings |= {"reinforce.select": select} if rewarded(arm) else {}
        if arm.key is not None:
            settings[arm.key] = value
        place = self.folder / "arms" / arm.name
        if arm.key:
            place /= f"{last(arm.key)}-" + "".join(c if c.isalnum() or c in ".+-" else "_" for c in str(value))
        threads = self.config.threads or max(1, available_threads() // self.compare.jobs)
        made = changed(self.config, {**settings, "runs": str(place), "name": f"seed-{seed}", "threads": threads})
        return kind_of(made).settle(made)

    def _tell(self, task: Task, done: Done) -> None:
        self._done += 1
        total = self._count()
        left = (time.monotonic() - self._begun) / self._done * (total - self._done)
        time_left = f"; about {left / 60:.0f} min left" if total > self._done else ""
        if done.failed:
            self.failed[task.folder] = done.failed
            self.say(f"[{self._done}/{total}] {task}: broke down, and is not chosen: {done.failed}{time_left}")
            return
        best = read_json(task.folder / "best" / "best.json")
        value = "" if best["value"] is None else f" {best['metric']} {best['value']:.4f} held out,"
        self.say(f"[{self._done}/{total}] {task}: {best['label']}{value} {done.seconds:.0f} s{time_left}")

    def ran(self) -> list[Ran]:
        """What was run, arm by arm."""
        found = []
        for arm in self.arms:
            value = self.chosen[arm.name]
            folders = [self.task(arm, value, seed).folder for seed in self.compare.seeds]
            found.append(Ran(arm, value, self.validation(arm) if arm.values else [], folders))
        return found

    # ------------------------------------------------------------ the folder

    def claim(self) -> list[Asked]:
        """The folder is this study's, or RunError. Returns what was asked for so far, in order."""
        # the arms' names stand for the values of an axis, of which all are compared with the reference
        left_out: dict[str, Any] = {"jobs": True, "arms": True, "seeds": True, "axis": {"values"}}
        left_out |= {"target": True} if self.compare.axis else {}
        compare = self.compare.model_dump(mode="json", exclude=left_out)
        used = {name: getattr(self.config, name) or SECTIONS[name]() for arm in self.arms for name in sections(arm)}
        later = {name: used[name].model_dump(mode="json") for name in sorted(used)}
        found = identify(changed(self.config, dict.fromkeys(SECTIONS)))
        same = {**found.same, "compare": compare}
        if self.config.scorer is not None:  # it judges the players of every arm
            later["scorer"] = check_scorer(self.config.scorer, found.renderer, same["base fingerprint"])
        del same["seed"]
        asked = {"arms": [arm.name for arm in self.arms], "seeds": list(self.compare.seeds)}
        return claim(self.folder, same, later, asked, self.config.model_dump(mode="json"))


def study_folder(config: Config) -> Path:
    """Where a study lives: runs/name.compare."""
    folder = run_folder(config)
    return folder.with_name(f"{folder.name}.compare")


def _best(folder: Path) -> float:
    return float(read_json(folder / "best" / "best.json")["value"])


def run_study(config: Config, say: Say = print, command: str = "") -> Path:
    """The whole comparison; returns its folder. Called again after a kill, it goes on from there."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("a comparison starts its own processes; run it without torchrun, with compare.jobs=N")
    study = Study(config, say)
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{study.folder} cannot be made ({error.strerror}); give another place with runs=...") from None
    try:
        with FileLock(str(study.folder / ".lock"), timeout=0):
            history = study.claim()
            study.run()
            bring_together(study.folder, study.config, study.compare, study.ran(), history, command)
    except Timeout:
        raise RunError(f"another process is working on {study.folder}; wait for it, or give another name") from None
    return study.folder
