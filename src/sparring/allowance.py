"""What self-play may spend: epochs that end with the budget, generation and scoring included.

A study gives all its arms one budget. An iteration may spend what is left of its share after the opponent has played
and its answers have been scored; tokens, FLOPs and steps are known before a step is done, so they are met to within
half a batch. Seconds are forecast from the rate of what was learnt last in this run, and so met only roughly.
Reinforcement learning spends in the same way; what a scorer computes is counted in seconds alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparring.config import Config
from sparring.config_selfplay import at
from sparring.errors import RunError
from sparring.files import read_json, write_atomic
from sparring.folder import METRICS, read_lines
from sparring.run import CHECKPOINTS, Event
from sparring.session import Session

PHASES = ("played", "rewards", "scored", "pairs", "player")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one epoch takes: optimiser steps (passes are joined, so parts of one count), tokens, FLOPs."""

    steps: float
    tokens: int
    flops: int


def rounds(config: Config) -> int:
    """How many iterations a run has: of reinforcement learning where it has that section, else of self-play."""
    return config.selfplay.iterations if config.reinforce is None else config.reinforce.iterations


def spent(phase: Path) -> Event:
    """What a finished phase has taken: steps, tokens, flops, seconds; 0 where it says nothing."""
    found = [event for event in read_lines(phase / METRICS) if event["event"] == "phase"]
    said = found[-1] if found else {}
    return {unit: said.get(unit) or 0 for unit in ("steps", "tokens", "flops", "seconds")}


def spent_on_play(run: Path, iterations: int) -> Event:
    """What the iterations of a run have taken so far, judging left out."""
    total = {"steps": 0, "tokens": 0, "flops": 0, "seconds": 0.0}
    for folder in _phases(run, iterations):
        for unit, amount in spent(folder).items():
            total[unit] += amount
    return total


def _phases(run: Path, iterations: int) -> Iterator[Path]:
    return (run / str(t) / phase for t in range(iterations) for phase in PHASES)


def epochs_within(
    session: Session, folder: Path, iteration: int, once: Cost, usual: float | None = None, most: float | None = None
) -> float:
    """Epochs of this iteration: `usual`, or what its share of `selfplay.budget` allows.

    folder  of the phase in progress, where a forecast is kept for a restart
    once    what one epoch takes
    usual   epochs without a budget; default: `selfplay.epochs`
    most    more are not taken whatever the budget allows
    """
    config = session.config.selfplay
    if config.budget is None:
        return at(config.epochs, iteration) if usual is None else usual
    kept = session.crew.decide(lambda: _kept(session, folder / CHECKPOINTS / "epochs.json", iteration, once))
    if most is None or kept <= most:
        return kept
    last = iteration + 1 == rounds(session.config)
    session.run.warn(
        f"the budget would pay for {kept:.1f} passes over what iteration {iteration} learns from; {most:g} are made, "
        f"for the same answers teach less each time, and the rest is {'not spent' if last else 'left to the next'}"
    )
    return most


def _kept(session: Session, path: Path, iteration: int, once: Cost) -> float:
    if path.exists():
        epochs = float(read_json(path)["epochs"])
    else:
        epochs = _epochs(session, iteration, once)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"epochs": epochs}))
    least = min(1.0, 1 / once.steps)  # a step, smaller than a batch where there is not more
    if epochs < least:
        session.run.warn(f"the budget was used up before iteration {iteration} learnt, so it took one step only")
    return max(epochs, least)


def _epochs(session: Session, iteration: int, once: Cost) -> float:
    """What the budget leaves for learning; 0 or less if nothing."""
    return left_of(session, iteration) / in_units(session, iteration, once)


def left_of(session: Session, iteration: int) -> float:
    """What is left of the budget's share up to this iteration, in the budget's unit; below 0 if it is overspent."""
    budget = session.config.selfplay.budget
    assert budget is not None
    share = budget.amount * (iteration + 1) / rounds(session.config)
    return float(share - spent_on_play(session.run.folder, iteration + 1)[budget.unit])


def in_units(session: Session, iteration: int, cost: Cost) -> float:
    """A cost in the budget's unit; seconds are forecast from the rate at which this run learnt last."""
    budget = session.config.selfplay.budget
    assert budget is not None
    if budget.unit == "seconds":
        return cost.flops / _rate(session.run.folder, iteration)
    return float({"steps": cost.steps, "tokens": cost.tokens, "flops": cost.flops}[budget.unit])


def _rate(run: Path, iteration: int) -> float:
    """FLOPs per second of what was learnt last in this run."""
    for phase in [*(run / str(t) / "player" for t in reversed(range(iteration))), run / "sft"]:
        seconds = sum(event["seconds"] for event in read_lines(phase / METRICS) if event["event"] == "step")
        flops = spent(phase)["flops"]
        if flops and seconds:
            return float(flops / seconds)
    raise RunError(
        "a budget in seconds needs a phase of learning to forecast from, and sft.epochs is 0; give it in flops, tokens "
        "or steps"
    )
