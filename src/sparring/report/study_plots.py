"""A study's two pictures: the differences to the reference (a forest plot), and the values themselves."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

from sparring.report.records import number
from sparring.report.study import Arm, Study, estimate, per_seed
from sparring.report.svg import GREEN, GRID, INK, MUTED, PAPER, REAL, SYNTHETIC, Plot, brief, drawing, figure, to_svg
from sparring.report.tested import plain, ranged


def draw_study(study: Study) -> list[Plot]:
    """The plots that the study has numbers for."""
    with drawing():
        return [plot for make in (forest, values) if (plot := make(study)) is not None]


def forest(study: Study) -> Plot | None:
    """One line per arm: its paired difference to the reference on the primary metric, 95 % interval, seeds as dots."""
    reference = next((arm for arm in study.arms if arm.name == study.reference), None)
    metric = study.primary
    found = {arm.name: estimate(arm.against.get(study.reference, {}).get(metric.key)) for arm in study.arms}
    if reference is None or not any(found.values()):
        return None
    arms = [arm for arm in study.arms if not study.pairs or arm is reference or found[arm.name]]
    made, (axis,) = figure(1, 1.3 + 0.42 * len(arms))
    smallest = number(study.facts, "smallest")
    axis.axvline(0, color=MUTED, linewidth=1.2)
    if smallest:
        axis.axvspan(-smallest, smallest, color=GRID, alpha=0.45, linewidth=0)
    said = []
    for place, arm in enumerate(arms):
        if arm is reference:
            axis.plot([0], [place], "D", color=MUTED, markerfacecolor=PAPER)
            continue
        if (numbers := found[arm.name]) is None:
            continue
        colour = _colour(numbers, metric.better)
        _bar(axis, place, numbers, colour)
        seeds = per_seed(arm, reference, metric.key)
        axis.plot(seeds, [place + 0.24] * len(seeds), ".", color=MUTED, markersize=4.5, linestyle="none")
        said.append(f"{arm.label} {plain(numbers[0], sign=True)} {_range(numbers)}")
    _rows(axis, study, arms, study.reference)
    _sides(axis, metric.better)
    axis.set_xlabel(brief(f"difference in {metric.label}{f', {metric.unit}' if metric.unit else ''}", 60))
    title = f"{metric.label}: difference to {reference.label}"
    caption = ["Paired by prompt and seed; bars are 95 % intervals, small dots single seeds."]
    if metric.better:
        caption.append("Green: the interval lies on the better side of 0; vermilion: on the worse; blue: on neither.")
    if smallest:
        caption.append(f"The band holds differences under {smallest:g}, which were declared too small to matter.")
    return Plot("forest", title, to_svg(made, "forest", title, f"{'; '.join(said)}."), " ".join(caption))


def values(study: Study) -> Plot | None:
    """The primary metric of each arm itself: the chosen iteration filled, the last one hollow."""
    metric = study.primary
    found = [(estimate(arm.values.get(metric.key)), estimate(arm.last.get(metric.key))) for arm in study.arms]
    if not any(chosen for chosen, _ in found):
        return None
    made, (axis,) = figure(1, 1.3 + 0.42 * len(study.arms))
    said = []
    for place, (arm, (chosen, last)) in enumerate(zip(study.arms, found, strict=True)):
        if chosen is not None:
            _bar(axis, place, chosen, REAL)
            said.append(f"{arm.label} {plain(chosen[0])} {_range(chosen, sign=False)}")
        if last is not None and last != chosen:
            axis.plot([last[0]], [place + 0.24], "o", color=MUTED, markerfacecolor=PAPER, markersize=4.5)
    _rows(axis, study, study.arms, "")
    axis.set_xlabel(brief(f"{metric.label}{f', {metric.unit}' if metric.unit else ''}", 60))
    title = f"{metric.label} of each arm"
    caption = "On the test prompts. Filled: the chosen iteration with its 95 % interval; hollow: the last, if another."
    if metric.better:
        caption += f" {metric.better.capitalize()} is better."
    return Plot("values", title, to_svg(made, "values", title, f"{'; '.join(said)}."), caption)


def _bar(axis: Any, place: int, numbers: tuple[float, float | None, float | None], colour: str) -> None:
    mean, low, high = numbers
    if low is not None and high is not None:
        axis.hlines(place, low, high, color=colour, linewidth=2.2)
    axis.plot([mean], [place], "o", color=colour)


def _rows(axis: Any, study: Study, arms: Sequence[Arm], reference: str) -> None:
    """Arms from top to bottom, the target in bold."""
    labels = [
        "\n".join(wrap(arm.label, 18, max_lines=2, placeholder="…")) + "\n(reference)" * (arm.name == reference)
        for arm in arms
    ]
    axis.set_yticks(range(len(labels)), labels)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    for arm, tick in zip(arms, axis.get_yticklabels(), strict=True):
        if arm.name == study.target:
            tick.set_fontweight("bold")
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.margins(x=0.08)
    axis.locator_params(axis="x", nbins=5)
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", color=GRID)


def _sides(axis: Any, better: str) -> None:
    """Which side of 0 is better, written above it."""
    if not better:
        return
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -0.15 * (high - low)), max(high, 0.15 * (high - low)))
    left, right = ("← better", "worse →") if better == "lower" else ("← worse", "better →")
    axis.set_title(left, loc="left", color=GREEN if better == "lower" else SYNTHETIC)
    axis.set_title(right, loc="right", color=SYNTHETIC if better == "lower" else GREEN)


def _colour(numbers: tuple[float, float | None, float | None], better: str) -> str:
    _, low, high = numbers
    if not better or low is None or high is None or low <= 0 <= high:
        return REAL
    return GREEN if (high < 0) == (better == "lower") else SYNTHETIC


def _range(numbers: tuple[float, float | None, float | None], sign: bool = True) -> str:
    return ranged(numbers[1], numbers[2], sign)
