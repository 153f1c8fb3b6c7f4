"""The pictures of docs/rewards.md, from the numbers and runs of benchmarks/rewards_laboratory.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study_table import standalone
from sparring.files import write_atomic
from sparring.report.best_of import ticked
from sparring.report.svg import (
    GREEN,
    INK,
    MUTED,
    PAPER,
    PURPLE,
    REAL,
    SYNTHETIC,
    Plot,
    drawing,
    end_labels,
    figure,
    to_svg,
)

Row = dict[str, Any]
COLOURS = (GREEN, REAL, PURPLE, INK, SYNTHETIC)


def draw_all(made: Mapping[str, Any], out: Path) -> None:
    """models.svg, stop.svg, select.svg, rank.svg, learn.svg."""
    with drawing():
        plots = {
            "models": models_plot(made["models"]),
            "stop": stop_plot(made["stop"]),
            "select": players_plot(made["select"], "select", "Use 2: select"),
            "rank": rank_plot(made["rank"]),
            "learn": players_plot(made["learn"], "learn", "Use 4: learn"),
        }
    for name, plot in plots.items():
        write_atomic(out / f"{name}.svg", standalone(plot.svg))


def models_plot(rows: Sequence[Row]) -> Plot:
    """Held-out accuracy with its interval; what is possible on such pairs as a hollow mark."""
    made, (axis,) = figure(1, 0.9 + 0.5 * len(rows))
    axis.axvline(0.5, color=MUTED, linewidth=1.1, linestyle=":")
    for place, row in enumerate(rows):
        found, most = row["labels"], row["allowed"].get("ratio", row["allowed"]["validity"])["mean"]
        axis.hlines(place, found["low"], found["high"], color=REAL, linewidth=1.4)
        axis.plot([found["mean"]], [place], "o", color=REAL)
        axis.plot([most], [place], "D", color=MUTED, markerfacecolor=PAPER)
        axis.plot([row["order"]["mean"]], [place + 0.22], "o", color=GREEN, markersize=4)
    axis.set_yticks(
        range(len(rows)), [row["name"].replace("_0", "₀").replace(", ", ",\n").replace(" of ", "\nof ") for row in rows]
    )
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="x")
    axis.set_xlim(0.35, 1.02)
    axis.set_xlabel("share of held-out pairs; dotted: chance")
    title = "Reward models: accuracy (blue), possible (hollow), valid over invalid (green)"
    axis.set_title("accuracy: blue; possible: hollow; of valid over invalid: green", loc="right", fontsize=9.5)
    said = "; ".join(f"{row['name']} {row['labels']['mean']:.3f}" for row in rows)
    return Plot("models", title, to_svg(made, "models", title, said), "")


def stop_plot(found: Mapping[str, Row]) -> Plot:
    """The scorer's mean and held-out NLL at the checks of an iteration, and where it is stopped."""
    looked, stop = found["looked"], found["stopped"]["stop"]
    steps = [0, *(check["step"] for check in looked["checks"]), looked["steps"]]
    made, (score, loss) = figure(2, 4.0, sharex=True)
    gaps = [check["reward_difference"] for check in looked["checks"]] + [looked["end"]["reward_difference"]]
    score.axhline(0, color=MUTED, linewidth=1.1, linestyle=":")
    score.plot(steps, [0.0, *(gap["mean"] for gap in gaps)], "o-", color=GREEN)
    score.vlines(steps[1:], [gap["low"] for gap in gaps], [gap["high"] for gap in gaps], color=GREEN, linewidth=1.2)
    nll = [looked["nll"]["sft"], *(check["heldout_nll"] for check in looked["checks"]), looked["nll"]["0"]]
    loss.plot(steps, nll, "o-", color=REAL)
    for axis in (score, loss):
        if stop:
            axis.axvline(stop["step"], color=SYNTHETIC, linewidth=1.3, linestyle="--")
        axis.margins(y=0.12)
    score.set_title("the scorer's held-out mean less that of the start")
    loss.set_title("held-out NLL, nats per token")
    loss.set_xlabel("optimiser steps" + ("; dashed: stopped here, and rolled back" if stop else ""))
    title = "Use 1: stop"
    said = "; ".join(f"step {step}: {gap['mean']:+.3f}" for step, gap in zip(steps[1:], gaps, strict=True))
    return Plot("stop", title, to_svg(made, "stop", title, said), "")


def players_plot(rows: Sequence[Row], name: str, title: str) -> Plot:
    """Scorer's mean and NLL of every player less θ_0's, prompt by prompt, and KL to θ_0; without the base."""
    made, axes = figure(3, 5.0, sharex=True)
    later = [row for row in rows if row["player"] != "base"]
    places = range(len(later))
    for axis, key, colour in ((axes[0], "difference", GREEN), (axes[1], "nll_difference", REAL)):
        gaps = [row[key] or {"mean": 0.0, "low": 0.0, "high": 0.0} for row in later]
        means = [gap["mean"] for gap in gaps]
        best = means.index(max(means) if key == "difference" else min(means))
        axis.axhline(0, color=MUTED, linewidth=1.1, linestyle=":")
        axis.plot(places, means, "o-", color=colour)
        axis.vlines(places, [gap["low"] for gap in gaps], [gap["high"] for gap in gaps], color=colour, linewidth=1.2)
        axis.plot([best], [means[best]], "o", color=colour, markersize=11, markerfacecolor="none")
    axes[2].plot(places, [row["kl_start"] for row in later], "o-", color=INK)
    for axis in axes:
        axis.margins(y=0.16)
    axes[0].set_title("scorer's held-out mean less θ₀'s; ringed: the highest")
    axes[1].set_title("held-out NLL less θ₀'s, nats per token; ringed: the lowest")
    axes[2].set_title("KL to θ₀, nats per answer")
    axes[2].set_xticks(places, [row["label"].removesuffix(" (SFT)") for row in later])
    said = "; ".join(f"{row['label']} {row['reward']:.3f}, NLL {row['nll']:.4f}" for row in later)
    return Plot(name, title, to_svg(made, name, title, said), "")


def rank_plot(found: Mapping[str, Sequence[Row]]) -> Plot:
    """Valid answers against n, by what chooses, and how far each chooser's own mean has risen."""
    made, (valid, own) = figure(2, 5.4, sharex=True, height_ratios=(2.2, 1))
    ends: dict[str, list[tuple[float, str, str]]] = {"valid": [], "own": []}
    for colour, (name, curve) in zip(COLOURS, found.items(), strict=True):
        x = [math.log2(row["n"]) for row in curve]
        valid.fill_between(
            x,
            [row["valid_low"] for row in curve],
            [row["valid_high"] for row in curve],
            color=colour,
            alpha=0.1,
            linewidth=0,
        )
        valid.plot(x, [row["valid"] for row in curve], "o-", color=colour, markersize=4)
        first, whole = curve[0]["reward"], curve[-1]["reward_gain"]
        own.plot(x, [(row["reward"] - first) / whole for row in curve], "-", color=colour, linewidth=1.4)
        ends["valid"].append(
            (curve[-1]["valid"], name.replace(", ", ",\n").replace("_0", "₀").replace("_3", "₃"), colour)
        )
    valid.margins(x=0.03)
    end_labels(valid, ends["valid"], gap=0.15)
    valid.set_title("valid answers, share of the chosen ones")
    own.set_title("the chooser's own mean, rescaled to 0 … 1")
    own.set_ylim(-0.05, 1.08)
    ticked(own, list(next(iter(found.values()))))
    own.set_xlabel("n; below: KL from θ₀ at most, nats")
    title = "Use 3: rank"
    said = "; ".join(f"{name} {curve[0]['valid']:.3f} to {curve[-1]['valid']:.3f}" for name, curve in found.items())
    return Plot("rank", title, to_svg(made, "rank", title, said), "")
