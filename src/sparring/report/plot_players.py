"""Plots with one place per player or per phase: answers, seconds, and the laboratory's exact measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparring.report.records import Run, exact, number
from sparring.report.svg import (
    GREEN,
    GRID,
    INK,
    MUTED,
    PURPLE,
    REAL,
    SYNTHETIC,
    Plot,
    brief,
    end_labels,
    figure,
    to_svg,
)
from sparring.report.tables import duration, fixed, kind, percent, phase_label

KIND_COLOURS = {"generation": SYNTHETIC, "scoring": PURPLE, "learning": REAL, "judging": GREEN}


def answers_plot(run: Run) -> Plot | None:
    """Answer length and end rate of each player beside the real answers."""
    players = [player for player, row in run.scores.items() if number(row, "length") is not None]
    if not players:
        return None
    made, (length, ends) = figure(2, 4.0, sharex=True)
    for axis, key, scale in ((length, "length", 1.0), (ends, "end_rate", 100.0)):
        labels = []
        for name, found, colour, style in (
            ("synthetic", key, SYNTHETIC, "o--"),
            ("real", f"real_{key}", REAL, "s-"),
        ):
            values = [number(run.scores[player], found) for player in players]
            points = [(x, value * scale) for x, value in enumerate(values) if value is not None]
            if points:
                axis.plot(*zip(*points, strict=True), style, color=colour)
                labels.append((points[-1][1], name, colour))
        axis.margins(y=0.14)
        end_labels(axis, labels, gap=0.13)
    length.set_title("answer length, tokens")
    ends.set_title("answers that end by themselves, %")
    ends.set_ylim(-6, 106)
    _player_ticks(run, ends, players)
    title = "Answers: length and end rate"
    said = "; ".join(
        f"{run.label(player)} {fixed(number(run.scores[player], 'length'), 1)} tokens, "
        f"{percent(number(run.scores[player], 'end_rate'))} ended"
        for player in players
    )
    caption = "Sampled on held-out prompts. A player that drifts from the real answers here is drifting in form."
    return Plot("answers", title, to_svg(made, "answers", title, said), caption)


def exact_plot(run: Run) -> Plot | None:
    """The laboratory's exact KL to the data and valid mass per player."""
    players = [player for player, row in run.scores.items() if number(exact(row), "kl") is not None]
    if not players:
        return None
    made, axes = figure(2, 4.0, sharex=True)
    for axis, key, scale, colour in ((axes[0], "kl", 1.0, REAL), (axes[1], "valid_mass", 100.0, GREEN)):
        values = [number(exact(run.scores[player]), key) for player in players]
        points = [(x, value * scale) for x, value in enumerate(values) if value is not None]
        if points:
            axis.plot(*zip(*points, strict=True), "o-", color=colour)
        for x, value in points:
            axis.annotate(
                fixed(value, 3 if scale == 1 else 1),
                (x, value),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
            )
        axis.margins(y=0.2)
    axes[0].set_title("exact KL(p_data ‖ player), nats per answer")
    axes[1].set_title("probability of valid answers, %")
    axes[0].set_ylim(bottom=0)
    _player_ticks(run, axes[1], players)
    title = "Distance to the data, exactly"
    said = "; ".join(
        f"{run.label(player)} KL {fixed(number(exact(run.scores[player]), 'kl'))}, valid mass "
        f"{percent(number(exact(run.scores[player]), 'valid_mass'))}"
        for player in players
    )
    caption = "By enumerating every valid answer: no sampling error. KL 0 is the data itself."
    return Plot("exact", title, to_svg(made, "exact", title, said), caption)


def _player_ticks(run: Run, axis: Any, players: Sequence[str]) -> None:
    axis.set_xticks(range(len(players)), [brief(run.label(player), 12).replace(" (", "\n(") for player in players])
    axis.set_xlim(-0.4, len(players) - 0.6)


# ---------------------------------------------------------------- 5: where the time went


def seconds_plot(run: Run) -> Plot | None:
    """Seconds of each phase, one bar each, coloured by what was done."""
    timed = [(phase, value) for phase, row in run.phases.items() if (value := number(row, "seconds")) is not None]
    if not timed:
        return None
    made, (axis,) = figure(1, 0.9 + 0.27 * len(timed))
    longest = max(value for _, value in timed) or 1.0
    for place, (phase, value) in enumerate(timed):
        axis.barh(place, value, height=0.68, color=KIND_COLOURS.get(kind(phase), MUTED))
        axis.text(value + 0.012 * longest, place, duration(value), va="center", color=INK)
    axis.set_yticks(range(len(timed)), [brief(phase_label(phase)) for phase, _ in timed])
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.set_xlim(0, 1.2 * longest)
    axis.set_ylim(len(timed) - 0.4, -0.6)
    axis.set_xlabel("seconds")
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", color=GRID)
    title = "Seconds per phase"
    total: dict[str, float] = {}
    for phase, value in timed:
        total[kind(phase)] = total.get(kind(phase), 0.0) + value
    said = ", ".join(f"{name} {duration(value)}" for name, value in total.items())
    return Plot("seconds", title, to_svg(made, "seconds", title, f"In all: {said}."), f"In all: {said}.")
