"""Plots through the optimiser steps of self-play: log-probs and their shift, SPIN loss and margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sparring.report.records import Row, Run, number
from sparring.report.svg import GREEN, INK, MUTED, REAL, SYNTHETIC, Plot, end_labels, figure, to_svg
from sparring.report.tables import fixed, phase_label

NAMES = {True: ("chosen", "rejected", "reference"), False: ("real", "synthetic", "opponent")}  # by Run.prefers
LOSS_AT_ZERO = {"logistic": math.log(2), "hinge": 1.0, "exponential": 1.0, "correlation": 1.0, "squared": 1.0}
MOST_POINTS = 150  # per iteration; more steps are averaged in bins


def logprob_plot(run: Run) -> Plot | None:
    """Real and synthetic, or chosen and rejected, log-prob per token, and how far both moved from the opponent."""
    phases = phases_with(run, "real_logprob")
    if not phases:
        return None
    first, second, _ = NAMES[run.prefers]
    made, (level, shift) = figure(2, 4.4, sharex=True)
    ends: dict[str, list[tuple[float, str, str]]] = {"logprob": [], "shift": []}
    for axis, what in ((level, "logprob"), (shift, "shift")):
        for name, key, colour, style in ((first, "real", REAL, "-"), (second, "synthetic", SYNTHETIC, "--")):
            last = series(run, axis, phases, f"{key}_{what}", colour, style)
            ends[what] += [(last, name, colour)] if last is not None else []
    shift.axhline(0, color=MUTED, linewidth=0.8)
    level.set_title("log-prob, nats per token")
    shift.set_title(f"change since {'it' if run.prefers else 'the iteration'} began, nats per answer")
    boundaries(run, [level, shift], phases)
    end_labels(level, ends["logprob"])
    end_labels(shift, ends["shift"])
    title = f"{first.capitalize()} and {second} log-probs"
    said = "; ".join(_first_last(run, phase, ("real_logprob", "synthetic_logprob")) for phase in phases)
    caption = (
        f"Mean over each step's answers. Learning should lift the {first} line and lower the {second} one; if "
        "both fall below 0 in the lower panel, the margin grows by likelihood displacement."
    )
    if not run.prefers:
        caption += " At each boundary the player becomes the opponent and new answers are generated."
    caption += step_caption(run, phases)
    return Plot("logprobs", title, to_svg(made, "logprobs", title, said), caption)


def loss_plot(run: Run) -> Plot | None:
    """SPIN loss and margin, each in its own panel."""
    phases = phases_with(run, "spin_loss")
    if not phases:
        return None
    made, (loss, margin) = figure(2, 4.4, sharex=True)
    series(run, loss, phases, "spin_loss", INK, "-")
    last = series(run, margin, phases, "margin", GREEN, "-")
    shape = str(run.setting("selfplay", "loss") or "logistic")
    beta = run.setting("selfplay", "beta")
    start = 0.25 / beta**2 if shape == "ipo" and isinstance(beta, float) else LOSS_AT_ZERO.get(shape)
    first, second, held = NAMES[run.prefers]
    name = "loss" if run.prefers else "SPIN loss"
    if start is not None:
        loss.axhline(start, color=MUTED, linewidth=1.1, linestyle=":")
    margin.axhline(0, color=MUTED, linewidth=1.1, linestyle=":")
    loss.set_title(name)
    margin.set_title(f"margin, {first} − {second}")
    boundaries(run, [loss, margin], phases)
    end_labels(loss, [(start, f"ℓ(0) = {start:.3g}", MUTED)] if start is not None else [])
    end_labels(margin, [(last, "margin", GREEN)] if last is not None else [])
    title = f"{name[0].upper()}{name[1:]} and margin"
    said = "; ".join(_first_last(run, phase, ("spin_loss", "margin")) for phase in phases)
    caption = "" if run.prefers else "Losses of different iterations are not comparable, and none with NLL. "
    caption += (
        f"It is measured against the {held}, and starts where the player equals it, at margin 0 and loss ℓ(0). "
        "Shown without the anchor. A falling loss is no evidence of a better player." + step_caption(run, phases)
    )
    return Plot("loss", title, to_svg(made, "loss", title, said), caption)


def phases_with(run: Run, key: str) -> list[str]:
    """The learning phases whose steps have this number."""
    phases = [f"{t}/player" for t in run.iterations]
    return [phase for phase in phases if any(number(row, key) is not None for row in run.steps.get(phase, []))]


def _offsets(run: Run, phases: Sequence[str]) -> list[float]:
    """Where each phase begins on the common axis of steps, and where the last one ends."""
    ends = [0.0]
    for phase in phases:
        ends.append(ends[-1] + max(number(row, "step") or 0.0 for row in run.steps[phase]))
    return ends


def series(run: Run, axis: Any, phases: Sequence[str], key: str, colour: str, style: str) -> float | None:
    """One line per phase, broken at the boundaries; the last value."""
    last = None
    for offset, phase in zip(_offsets(run, phases), phases, strict=False):
        points = _points(run.steps[phase], key)
        if points:
            xs, ys = zip(*points, strict=True)
            marker = "." if len(points) < 3 else ""
            axis.plot([offset + x for x in xs], ys, color=colour, linestyle=style, marker=marker)
            last = ys[-1]
    return last


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    whole = [(x, y) for row in rows if (x := number(row, "step")) is not None and (y := number(row, key)) is not None]
    size = _bin(len(whole))
    bins = [whole[first : first + size] for first in range(0, len(whole), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


def _bin(points: int) -> int:
    return max(1, math.ceil(points / MOST_POINTS))


def step_caption(run: Run, phases: Sequence[str]) -> str:
    """How many steps a point stands for, if it is more than one."""
    size = max(_bin(len(run.steps[phase])) for phase in phases)
    return f" Drawn as means of {size} steps." if size > 1 else ""


def boundaries(run: Run, axes: Sequence[Any], phases: Sequence[str]) -> None:
    """A line where each iteration begins, its name at the top, the steps below; fixes the limits."""
    ends = _offsets(run, phases)
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high + 0.14 * (high - low))  # room for the names
    for axis in axes:
        axis.set_xlim(0, ends[-1] + 0.5)
        for offset in ends[1:-1]:
            axis.axvline(offset + 0.5, color=MUTED, linewidth=0.8)
    for offset, phase in zip(ends, phases, strict=False):
        name = phase.split("/")[0] if len(phases) > 4 else f"iteration {phase.split('/')[0]}"
        axes[0].annotate(
            name, (offset + 0.5, 1), xycoords=("data", "axes fraction"), xytext=(4, -3),
            textcoords="offset points", va="top", color=MUTED, fontsize=8.5,
        )  # fmt: skip
    axes[-1].set_xlabel("optimiser steps, all iterations")


def _first_last(run: Run, phase: str, keys: Sequence[str]) -> str:
    rows = run.steps[phase]
    moves = [f"{key} {fixed(number(rows[0], key), 3)} to {fixed(number(rows[-1], key), 3)}" for key in keys]
    return f"{phase_label(phase)}: {', '.join(moves)}".replace("_", " ")
