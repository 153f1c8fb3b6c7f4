"""`sparring lab run`: measure the laboratory's three worlds, and write the numbers and a page of figures.

A  the low-rank bandit: laws 5, 7, 8 and 9 by exact algebra
B  templated arithmetic: the embedded default, its distance to the data split in two
C  the grammar: the law of length, and faults on the real code path beside the right implementation
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparring.configfile import read_config
from sparring.errors import ConfigError, RunError, nearest
from sparring.files import write_atomic
from sparring.job import run_job
from sparring.laboratory import default_config, grammar
from sparring.laboratory.bandit_laws import measure_bandit
from sparring.laboratory.faults import FAULTS
from sparring.laboratory.pretrain import seeded
from sparring.laboratory.trials import READOUTS, Arena, make_arena_base
from sparring.report.lab_page import write_page

NUMBERS, PAGE, RUN = "lab.json", "lab.html", "laboratory"
SEEDS = 3  # right runs in world C, to know what seeds alone do

Say = Callable[[str], None]


def tour(out: Path, worlds: Sequence[str] = ("A", "B", "C"), seed: int = 0, *, force: bool = False, say: Say) -> Path:
    """Measure some worlds; write `out`/lab.json and `out`/lab.html and return the page.

    force  replace `out` if it is a laboratory's folder; otherwise an existing `out` is a RunError
    say    gets the progress lines

    The folder is written under a temporary name and renamed last.
    """
    for world in worlds:
        if world not in WORLDS:
            raise ConfigError(f'world "{world}" is not known; {nearest(world, WORLDS)}')
    out = out.absolute()
    _may_write(out, force)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    numbers: dict[str, Any] = {"seed": seed, "worlds": {}}
    for world in sorted(set(worlds)):
        title, measure = WORLDS[world]
        say(f"world {world}: {title}")
        started = time.monotonic()
        numbers["worlds"][world] = measure(partial, seed, say)
        say(f"world {world}: {time.monotonic() - started:.0f} s")
    write_atomic(partial / NUMBERS, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    write_page(numbers, partial / PAGE)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out / PAGE


def _may_write(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise RunError(f"{out} exists; give another --out, or --force to replace it")
    if not (out / NUMBERS).is_file():
        raise RunError(f"{out} is not a laboratory's folder, which is all that --force replaces; give another --out")


# ---------------------------------------------------------------- the worlds


def _world_a(folder: Path, seed: int, say: Say) -> dict[str, Any]:
    with seeded(seed, count=1):
        return measure_bandit(seed)


def _world_b(folder: Path, seed: int, say: Say) -> dict[str, Any]:
    """The embedded default; its run folder stays, as `laboratory` in the tour's."""
    settings = read_config(default_config(), [f"runs={folder}", f"name={RUN}", f"seed={seed}"])
    events: list[dict[str, Any]] = []
    run_job(settings, [events.append])
    scores = [event for event in events if event["event"] == "scores"]
    players = sorted(scores, key=lambda event: event["label"] != "base")  # the base is judged after θ_0
    return {"players": {event["label"]: {**event["exact"], "nll": event["nll"]} for event in players}}


def _world_c(folder: Path, seed: int, say: Say) -> dict[str, Any]:
    """Trials are run in a folder of their own, which is not kept."""
    with tempfile.TemporaryDirectory(prefix="sparring-lab-") as name:
        home = Path(name)
        base = make_arena_base(home / "base")
        arenas = [Arena(home / str(seed + k), base, seed + k) for k in range(SEEDS)]
        right = []
        for arena in arenas:
            right.append(arena.right())
            say(f"  right implementation, seed {arena.seed}")
        course = arenas[0].course()
        faults = {}
        for fault in FAULTS:
            faults[fault] = _fault(arenas[0], fault)
            say(f"  {fault}: {faults[fault]['stopped'] or 'not stopped'}")
    return {
        "law": grammar.length_law(grammar.PROMPTS),
        "players": course,
        "meanings": READOUTS,
        "right": [asdict(outcome) for outcome in right],
        "faults": faults,
    }


def _fault(arena: Arena, name: str) -> dict[str, Any]:
    fault = FAULTS[name]
    lifted = arena.wrong(name, lifted=True)
    return {
        "what": fault.what,
        "guard": fault.guard and fault.guard.law,
        "stopped": arena.wrong(name, lifted=False).stopped if fault.guard else None,
        "readout": fault.readout,
        "direction": fault.direction,
        "readouts": lifted.readouts,
        "lengths": lifted.lengths,
    }


WORLDS: dict[str, tuple[str, Callable[[Path, int, Say], dict[str, Any]]]] = {
    "A": ("the low-rank bandit", _world_a),
    "B": ("templated arithmetic", _world_b),
    "C": ("the grammar, and faults", _world_c),
}
