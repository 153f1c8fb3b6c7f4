"""Plots through the optimiser steps of self-play: log-probs and their shift, SPIN loss and margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sparring.report.records import Row, Run, number
from sparring.report.svg import GREEN, INK, MUTED, REAL, SYNTHETIC, Plot, end_labels, figure, to_svg
from sparring.report.tables import fixed, phase_label

LOSS_AT_ZERO = {"logistic": math.log(2), "hinge": 1.0, "exponential": 1.0, "correlation": 1.0, "squared": 1.0}
MOST_POINTS = 150  # per iteration; more steps are averaged in bins


def logprob_plot(run: Run) -> Plot | None:
    """Real and synthetic log-prob per token, and how far both moved from the opponent."""
    phases = phases_with(run, "real_logprob")
    if not phases:
        return None
    made, (level, shift) = figure(2, 4.4, sharex=True)
    ends: dict[str, list[tuple[float, str, str]]] = {"logprob": [], "shift": []}
    for axis, what in ((level, "logprob"), (shift, "shift")):
        for name, colour, style in (("real", REAL, "-"), ("synthetic", SYNTHETIC, "--")):
            last = series(run, axis, phases, f"{name}_{what}", colour, style)
            ends[what] += [(last, name, colour)] if last is not None else []
    shift.axhline(0, color=MUTED, linewidth=0.8)
    level.set_title("log-prob, nats per token")
    shift.set_title("change since the iteration began, nats per answer")
    boundaries(run, [level, shift], phases)
    end_labels(level, ends["logprob"])
    end_labels(shift, ends["shift"])
    title = "Real and synthetic log-probs"
    said = "; ".join(_first_last(run, phase, ("real_logprob", "synthetic_logprob")) for phase in phases)
    caption = (
        "Mean over each step's answers. Self-play should lift the real line and lower the synthetic one; if "
        "both fall below 0 in the lower panel, the margin grows by likelihood displacement. At each boundary "
        "the player becomes the opponent and new answers are generated." + step_caption(run, phases)
    )
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
    start = LOSS_AT_ZERO.get(shape)
    if start is not None:
        loss.axhline(start, color=MUTED, linewidth=1.1, linestyle=":")
    margin.axhline(0, color=MUTED, linewidth=1.1, linestyle=":")
    loss.set_title("SPIN loss")
    margin.set_title("margin, real − synthetic")
    boundaries(run, [loss, margin], phases)
    end_labels(loss, [(start, f"ℓ(0) = {start:.3g}", MUTED)] if start is not None else [])
    end_labels(margin, [(last, "margin", GREEN)] if last is not None else [])
    title = "SPIN loss and margin"
    said = "; ".join(_first_last(run, phase, ("spin_loss", "margin")) for phase in phases)
    caption = (
        "Losses of different iterations are not comparable, and none is comparable with NLL: each is "
        "measured against its own opponent, and starts where the player equals it, at margin 0 and loss ℓ(0). "
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
