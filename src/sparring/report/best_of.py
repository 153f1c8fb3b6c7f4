"""Quality against n: what choosing the best of n test answers gave, as a figure, a table, a sentence and a CSV."""

from __future__ import annotations

import math
from typing import Any

from sparring.evaluation.metrics import METRICS
from sparring.report.records import Row, Run, number, text
from sparring.report.sheets import sheet
from sparring.report.svg import GREEN, MUTED, PURPLE, REAL, Plot, brief, figure, to_svg
from sparring.report.tables import MISSING, fixed, interval

COLOURS = {"reward": GREEN, "valid": REAL, "match": PURPLE}
TITLES = {"valid": "valid answers, share", "match": "exact match, share"}
Curve = list[Row]  # one row for each n, from 1 up


def best_of_csv(run: Run) -> str:
    """One row per tested player and n, with unrounded numbers."""
    rows = (row for curve in run.best_of.values() for row in curve)
    return sheet(rows, ("which", "player", "n", "kl", "reward", "reward_low", "reward_high"))


def best_of_table(run: Run) -> tuple[list[str], list[list[str]]]:
    """A row per tested player and n; no rows where nothing was chosen."""
    curves = run.best_of.values()
    names = [name for name in COLOURS if any(number(row, name) is not None for curve in curves for row in curve)]
    heads = ["scorer's mean" if name == "reward" else METRICS[name].label.split(",")[0] for name in names]
    header = ["player", "n", "KL ≤", *(part for head in heads for part in (f"{head} [95 %]", "Δ to n = 1 [95 %]"))]
    rows = []
    for curve in curves:
        for row in curve:
            cells = [cell for name in names for cell in (_cell(row, name), _gain(row, name))]
            label = run.label(text(row.get("player")))
            rows.append([label, f"{number(row, 'n') or 0:.0f}", fixed(number(row, "kl"), 2), *cells])
    return header, rows


def best_of_notes(run: Run) -> list[str]:
    """Of the chosen player: what the answers are, why they have no likelihood, and what choosing did."""
    curve = run.best_of.get("best", [])
    if not curve:
        return []
    last, most = curve[-1], f"{number(curve[-1], 'n') or 0:.0f}"
    said = [
        f"Each sampled answer is the best of {most} by {text(last.get('scorer'))}. The best of n has no likelihood, so "
        f"NLL, KL and exact measures are left out; its KL from the player is at most {fixed(number(last, 'kl'), 2)} "
        "nats per answer. Greedy answers are the player's own."
    ]
    for name in TITLES:
        if number(last, name) is not None:
            said.append(_judged(curve, name))
    if not any(number(last, name) is not None for name in TITLES):
        said.append("No yardstick but the scorer itself was measured, so whether it is being fooled is not known.")
    return said


def _judged(curve: Curve, name: str) -> str:
    """What a yardstick that did not choose says: from one answer to the best of N, and where it is highest."""
    last, one, peak = curve[-1], curve[0], max(curve, key=lambda row: number(row, name) or 0.0)
    label, most = METRICS[name].label.split(",")[0], f"{number(last, 'n') or 0:.0f}"
    said = (
        f"{label.capitalize()}: {fixed(number(one, name), 3)} of single answers, {fixed(number(last, name), 3)} "
        f"of the best of {most} ({_gain(last, name)})"
    )
    if peak is not last:
        said += f"; highest at n = {number(peak, 'n') or 0:.0f} ({fixed(number(peak, name), 3)}), lower beyond"
    return f"{said}."


def _cell(row: Row, name: str) -> str:
    found = fixed(number(row, name)), interval(number(row, f"{name}_low"), number(row, f"{name}_high"))
    return " ".join(found).rstrip()


def _gain(row: Row, name: str) -> str:
    if number(row, "n") == 1:
        return MISSING
    low, high = number(row, f"{name}_gain_low"), number(row, f"{name}_gain_high")
    return f"{fixed(number(row, f'{name}_gain'), 3, sign=True)} {interval(low, high, 3, sign=True)}".rstrip()


# ---------------------------------------------------------------- the figure


def best_of_plot(run: Run) -> Plot | None:
    """The chosen player's quality against n."""
    curve = run.best_of.get("best", [])
    if not curve:
        return None
    title = "Best of n"
    scorer = text(curve[-1].get("scorer"))
    caption = (
        f"The best of n test answers by {scorer}: means over all subsets of n of the answers, with 95 % intervals over "
        "prompts; dotted: one answer. Below n, the bound on KL from the player in nats. The scorer's own mean can only "
        "rise; where another line falls it is being fooled."
    )
    made = drawn_curve(curve, scorer)
    said = "; ".join(f"n {number(row, 'n') or 0:.0f}: {fixed(number(row, 'reward'))}" for row in curve)
    return Plot("best-of", title, to_svg(made, "best-of", title, f"Scorer's mean, {said}."), caption)


def drawn_curve(curve: Curve, by: str) -> Any:
    """A panel for the scorer's mean and one for each yardstick."""
    names = [name for name in COLOURS if number(curve[-1], name) is not None]
    made, axes = figure(len(names), 0.9 + 1.55 * len(names), sharex=True)
    for name, axis in zip(names, axes, strict=True):
        _line(axis, curve, name)
        axis.axhline(number(curve[0], name) or 0.0, color=MUTED, linewidth=1.0, linestyle=":")
        axis.margins(x=0.04, y=0.14)
        axis.set_title(TITLES.get(name, f"scorer's own mean ({brief(by, 40)})"))
    ticked(axes[-1], curve)
    return made


def _line(axis: Any, curve: Curve, name: str) -> None:
    """A line with its interval as a band, against the number of doublings."""
    x = [_place(row) for row in curve]
    low, high = ([number(row, f"{name}{end}") for row in curve] for end in ("_low", "_high"))
    if None not in low and None not in high:
        axis.fill_between(x, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    axis.plot(x, [number(row, name) for row in curve], "o-", color=COLOURS[name], markersize=4)


def _place(row: Row) -> float:
    return math.log2(number(row, "n") or 1.0)


def ticked(axis: Any, curve: Curve) -> None:
    """n on a scale of doublings, and under it the bound on KL."""
    labels = [f"{number(row, 'n') or 0:.0f}\n{fixed(number(row, 'kl'), 2)}" for row in curve]
    axis.set_xticks([_place(row) for row in curve], labels)
    axis.set_xlabel("n answers to choose from; below: KL from the player at most, nats")
