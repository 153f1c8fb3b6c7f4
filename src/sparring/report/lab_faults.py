"""Figures and the table of the laboratory's world C: the right implementation beside each fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparring.report.lab_plots import player_name
from sparring.report.svg import GREEN, INK, MUTED, PURPLE, REAL, SYNTHETIC, Plot, brief, figure, to_svg

Numbers = Mapping[str, Any]
TINY = 1e-6  # below which a read-out is rounding


def lengths_plot(world: Numbers) -> Plot:
    """The exact law of length, and the lengths of players' and of the worst fault's answers."""
    made, (axis,) = figure(1, 3.4)
    law, last = world["law"], list(world["players"])[-1]
    places = range(2, len(law))
    axis.bar(places, law[2:], width=0.7, color=MUTED, alpha=0.35)
    worst = max(world["faults"], key=lambda name: float(world["faults"][name]["readouts"]["length law"]))
    lines = [
        ("base", world["players"]["base"]["lengths"], PURPLE, "^--"),
        (last, world["players"][last]["lengths"], REAL, "o-"),
        (worst, world["faults"][worst]["lengths"], SYNTHETIC, "s-"),
    ]
    for _, shares, colour, style in lines:
        axis.plot(places, shares[2:], style, color=colour, markersize=4.5)
    said = [("exact law", MUTED), *((player_name(name), colour) for name, _, colour, _ in lines)]
    for place, (name, colour) in zip((0.3, 0.5, 0.62, 0.7), said, strict=True):
        axis.text(place, 0.99, name, color=colour, va="top", transform=axis.transAxes)
    axis.margins(y=0.2)
    axis.set_xticks(list(places))
    axis.set_xlabel("tokens of an answer, end token included")
    axis.set_title("share of answers")
    apart = {name: sum(abs(p - q) for p, q in zip(law, shares, strict=True)) / 2 for name, shares, *_ in lines}
    caption = (
        "Theory: how often an answer has each length is known exactly, so a fault that changes when answers end "
        "shows at once. Measured, as total variation from the exact law: "
        + ", ".join(f"{player_name(name)} {value:.3f}" for name, value in apart.items())
        + ". The two players are the right implementation's."
    )
    title = "The law of length"
    return Plot("lengths", title, to_svg(made, "lengths", title, caption), caption)


def distance_plot(world: Numbers) -> Plot:
    """Exact KL of every player of the right run, and of the last player under each fault."""
    made, (axis,) = figure(1, 0.9 + 0.36 * (len(world["players"]) + len(world["faults"]) + 1))
    right = [row["readouts"]["KL"] for row in world["right"]]
    lines = [(name, [row["kl"]], MUTED) for name, row in world["players"].items()]
    lines.append((f"last player, {len(right)} seeds", right, REAL))
    lines += [(name, [row["readouts"]["KL"]], SYNTHETIC) for name, row in world["faults"].items()]
    for place, (_, values, colour) in enumerate(lines):
        axis.plot(values, [place] * len(values), "o", color=colour)
    axis.axvspan(min(right), max(right), color=REAL, alpha=0.12, linewidth=0)
    axis.set_yticks(range(len(lines)), [brief(player_name(name)) for name, *_ in lines])
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.grid(axis="x")
    axis.set_title("exact KL(p_data ‖ player), nats per answer", x=0)
    course = ", ".join(f"{player_name(name)} {row['kl']:.3f}" for name, row in world["players"].items())
    beyond = [name for name, row in world["faults"].items() if row["readouts"]["KL"] > max(right)]
    caption = (
        f"The right implementation, seed {world['seed']}: {course}; its last player over {len(right)} seeds "
        f"{min(right):.3f} to {max(right):.3f} (band). With a fault, its guard lifted, "
        + (f"{_listed(beyond)} end{'s' * (len(beyond) == 1)} beyond that. " if beyond else "none ends beyond that. ")
        + "A fault within the band is not harmless, only not to be seen here: that is what its own read-out is for."
    )
    title = "What a fault costs"
    return Plot("distance", title, to_svg(made, "distance", title, caption), caption)


def readouts_plot(world: Numbers) -> Plot:
    """For each fault the read-out that is named for it: right seeds beside the fault."""
    faults = world["faults"]
    rows = (len(faults) + 1) // 2
    made, axes = figure(rows, 0.3 + 1.6 * rows, ncols=2)
    for axis, (name, fault) in zip(axes, faults.items(), strict=False):
        key = fault["readout"]
        right = [row["readouts"][key] for row in world["right"]]
        axis.plot(right, [1] * len(right), "o", color=REAL)
        axis.plot([fault["readouts"][key]], [0], "s", color=SYNTHETIC)
        axis.set_yticks([0, 1], ["fault", "right"])
        axis.set_ylim(-0.6, 1.6)
        axis.margins(x=0.12)
        axis.locator_params(axis="x", nbins=3)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.grid(axis="x")
        axis.grid(axis="y", visible=False)
        axis.set_title(name, color=GREEN if _moved(world, fault) else INK)
        axis.set_xlabel(key)
    for axis in axes[len(faults) :]:
        axis.set_visible(False)
    moved = [name for name, fault in faults.items() if _moved(world, fault)]
    caption = (
        f"Each fault with its guard lifted, and the right implementation over {len(world['right'])} seeds. Theory "
        f"says which way each read-out moves. Measured: {len(moved)} of {len(faults)} move that way, beyond all right "
        "seeds" + ("." if len(moved) == len(faults) else f": {_listed(moved)}.")
    )
    title = "Every fault in the read-out named for it"
    return Plot("readouts", title, to_svg(made, "readouts", title, caption), caption)


def fault_table(world: Numbers) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """(read-outs as (name, meaning), lines as {label, note, cells}); a cell is {text, named, moved}."""
    names = list(world["meanings"])
    spans = {name: [row["readouts"][name] for row in world["right"]] for name in names}
    cells = [{"text": _span(spans[name]), "named": False, "moved": False} for name in names]
    lines: list[dict[str, Any]] = [{"label": "right", "note": f"{len(world['right'])} seeds", "cells": cells}]
    for label, fault in world["faults"].items():
        cells = [
            {
                "text": _number(fault["readouts"][name]),
                "named": name == fault["readout"],
                "moved": _far(fault["readouts"][name], spans[name]),
            }
            for name in names
        ]
        note = f"stopped by {fault['stopped']}" if fault["stopped"] else "not stopped"
        lines.append({"label": label, "note": f"{fault['what']}; {note}", "cells": cells})
    return list(world["meanings"].items()), lines


def _far(value: float, right: list[float]) -> bool:
    """Whether a number is outside of the right ones' span by more than its width."""
    low, high = min(right), max(right)
    return not 2 * low - high - TINY <= value <= 2 * high - low + TINY


def _moved(world: Numbers, fault: Numbers) -> bool:
    """Whether a fault moves its read-out the way it should, beyond all right seeds."""
    right = [fault["direction"] * row["readouts"][fault["readout"]] for row in world["right"]]
    return bool(fault["direction"] * fault["readouts"][fault["readout"]] > max(right))


def _span(values: list[float]) -> str:
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} … {high}"


def _number(value: float) -> str:
    return "0" if abs(value) < TINY else f"{value:.3g}".replace("-", "−")


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
