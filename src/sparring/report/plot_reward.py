"""Drawings of a reward run: how far its certainty can be believed, and how training went."""

from __future__ import annotations

from sparring.report.records import Row, Run, number
from sparring.report.svg import GREEN, INK, MUTED, REAL, Plot, end_labels, figure, to_svg
from sparring.report.tables import fixed, percent

MOST_POINTS = 150


def reliability_plot(scores: Row) -> Plot | None:
    """Certainty against the share that is right."""
    bins = scores.get("calibration", {}).get("bins")
    if not bins:
        return None
    made, (axis,) = figure(1, 3.0)
    axis.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1.1, linestyle=":")
    sure, right, _ = zip(*bins, strict=True)
    axis.plot(sure, right, color=REAL, marker="o")
    for x, y, count in bins:
        axis.annotate(f"{count:g}", (x, y), xytext=(5, -11), textcoords="offset points", color=MUTED, fontsize=8)
    axis.set_xlim(0.48, 1.02)
    axis.set_ylim(min(0.45, *right) - 0.03, 1.03)
    axis.set_xlabel("σ(reward difference): how sure it is")
    axis.set_title("share of pairs in which it is right")
    said = "; ".join(f"{percent(x)} sure: {percent(y)} of {count:g} right" for x, y, count in bins)
    caption = (
        f"On the dotted line its certainty can be taken at its word. The numbers are pairs; weighted by them the "
        f"distance to the line is {fixed(scores['calibration']['ece'], 3)} (ECE). Below the line it is too sure."
    )
    return Plot("reliability", "Reliability", to_svg(made, "reliability", "Reliability", said), caption)


def training_plot(run: Run, scores: Row) -> Plot | None:
    """Loss and accuracy through the steps."""
    rows = [row for row in run.steps.get("reward", []) if number(row, "reward_loss") is not None]
    if not rows:
        return None
    made, (loss, accuracy) = figure(2, 4.2, sharex=True)
    for axis, key, colour in ((loss, "reward_loss", INK), (accuracy, "accuracy", GREEN)):
        points = _points(rows, key)
        axis.plot(*zip(*points, strict=True), color=colour, marker="." if len(points) < 3 else "")
    loss.axhline(0.6931, color=MUTED, linewidth=1.1, linestyle=":")
    accuracy.axhline(0.5, color=MUTED, linewidth=1.1, linestyle=":")
    held = scores.get("accuracy", {}).get("mean")
    if held is not None:
        accuracy.axhline(held, color=REAL, linewidth=1.1)
    loss.set_title("loss, nats per pair")
    accuracy.set_title("accuracy on the pairs of the step, before it learns from them")
    accuracy.set_xlabel("optimiser steps")
    end_labels(loss, [(0.6931, "log 2", MUTED)])
    end_labels(accuracy, [(0.5, "chance", MUTED), *([(held, "held out", REAL)] if held is not None else [])])
    said = f"loss {fixed(number(rows[0], 'reward_loss'), 3)} to {fixed(number(rows[-1], 'reward_loss'), 3)}"
    caption = "A pair is new in the first epoch only: accuracy far above the held-out one is of pairs known by heart."
    return Plot("training", "Training", to_svg(made, "training", "Training", said), caption)


def _points(rows: list[Row], key: str) -> list[tuple[float, float]]:
    whole = [(number(row, "step") or 0.0, number(row, key) or 0.0) for row in rows]
    size = -(-len(whole) // MOST_POINTS)
    bins = [whole[first : first + size] for first in range(0, len(whole), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]
