"""The plot of fine-tuning's held-out checks, and which of them was kept; and what is said of it."""

from __future__ import annotations

from typing import Any

from sparring.report.records import Row, Run, number, text
from sparring.report.svg import GREEN, MUTED, PAPER, REAL, Plot, end_labels, figure, to_svg
from sparring.report.tables import fixed

PANELS = (
    ("reward", GREEN, "the scorer's mean over held-out prompts"),
    ("heldout_nll", REAL, "held-out NLL of the real answers, nats per token"),
)


def tuning_plot(run: Run) -> Plot | None:
    """Each check over the optimiser steps; the one that θ_0 is, is filled."""
    checks = [row for row in run.checks.get("sft", []) if number(row, "kept") is not None]
    if not checks:
        return None
    kept = number(checks[-1], "kept")
    panels = [panel for panel in PANELS if number(checks[-1], panel[0]) is not None]
    made, axes = figure(len(panels), 1.1 + 1.8 * len(panels), sharex=True)
    for axis, (key, colour, name) in zip(axes, panels, strict=True):
        _panel(axis, checks, key, key == panels[0][0], colour, kept)
        axis.set_title(name)
        value = next((number(row, key) for row in checks if number(row, "step") == kept), None)
        end_labels(axis, [(value, "θ₀", colour)] if value is not None else [])
    axes[-1].set_xlabel("optimiser steps of fine-tuning")
    title = "Fine-tuning, checked"
    by = panels[0][0]
    said = "; ".join(f"step {row.get('step')} {fixed(number(row, by))}" for row in checks)
    planned = max((number(row, "steps") or 0 for row in run.steps.get("sft", [])), default=0)
    judge = "the scorer" if by == "reward" else "held-out NLL"
    caption = (
        f"θ₀ is the filled one, after step {kept:.0f} of {planned:.0f} that were planned: the best by {judge}. Bars "
        "are the 95 % interval of a check's paired difference to the best one before it."
    )
    return Plot("tuning", title, to_svg(made, "tuning", title, f"{by.replace('_', ' ')}: {said}."), caption)


def _panel(axis: Any, checks: list[Row], key: str, bars: bool, colour: str, kept: float | None) -> None:
    points = [(x, y) for row in checks if (x := number(row, "step")) and (y := number(row, key)) is not None]
    axis.plot(*zip(*points, strict=True), color=colour)
    for x, y in points:
        axis.plot([x], [y], "o", color=colour, markerfacecolor=colour if x == kept else PAPER)
    values = dict(points)
    for row in checks if bars else []:
        gap, step = row.get("difference"), number(row, "step")
        if isinstance(gap, dict) and step in values:
            best = values[step] - gap["mean"]  # the best before it
            axis.vlines(step, best + gap["low"], best + gap["high"], color=colour, linewidth=1.2)
    axis.axhline(values.get(kept or 0.0, points[-1][1]), color=MUTED, linewidth=0.8, linestyle=":")
    axis.set_xlim(0, points[-1][0] * 1.03)
    axis.margins(y=0.16)


def tuning_words(run: Run) -> list[str]:
    """What fine-tuning's stop did, as a sentence; nothing if it handed over its last step."""
    said = text(run.phases.get("sft", {}).get("rolled_back"))
    return [f"Fine-tuning was {said}."] if said else []
