"""The report's plots: records in, inline SVG out. A plot with nothing to show is None.

Held-out NLL and the SPIN loss never share an axis: the loss of an iteration is measured against
that iteration's own opponent, so it says nothing about likelihood (law 8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sparring.report.best_of import best_of_plot
from sparring.report.plot_players import answers_plot, exact_plot, seconds_plot
from sparring.report.plot_steps import logprob_plot, loss_plot
from sparring.report.plot_tuning import tuning_plot
from sparring.report.records import Run, number
from sparring.report.rewarded import policy_plot, reward_plot
from sparring.report.svg import INK, MUTED, PAPER, REAL, Plot, brief, drawing, figure, to_svg
from sparring.report.tables import fixed


def draw(run: Run) -> list[Plot]:
    """Every plot that the run has numbers for, in the report's order."""
    with drawing():
        return [plot for make in PLOTS if (plot := make(run)) is not None]


def nll_plot(run: Run) -> Plot | None:
    """Held-out NLL: base and θ_0 on their own scale, then each iteration's two stages from θ_0 on."""
    if run.rewarded:
        return None  # beside reward, in its plot
    known = {player: value for player, row in run.scores.items() if (value := number(row, "nll")) is not None}
    played = [str(t) for t in run.iterations if _opponent_nll(run, str(t)) is not None]
    before = [player for player in ("base", run.start) if player in known]
    if not known and not any(run.checks.values()):
        return None
    panels = ["before"] * (len(set(before)) == 2) + ["play"] * bool(played or len(set(before)) < 2)
    ratios = [1.0 if panel == "before" else 1.2 + 0.7 * len(played) for panel in panels]
    made, axes = figure(1, 3.9, ncols=len(panels), width_ratios=ratios)
    for panel, axis in zip(panels, axes, strict=True):
        if panel == "before":
            _before_panel(run, axis)
        else:
            _play_panel(run, axis, played)
    axes[0].set_ylabel("held-out NLL, nats per token")
    title = "Held-out NLL"
    said = ", ".join(f"{run.label(player)} {fixed(value)}" for player, value in known.items())
    caption = (
        "Lower is better; bars are 95 % intervals over prompts, small dots are checks during learning. "
        "Dashed: while the opponent generates nothing is trained, so the value is the opponent's own. "
        + ("The two panels have different scales." if len(panels) == 2 else "")
    )
    return Plot("nll", title, to_svg(made, "nll", title, f"Nats per token: {said}."), caption.strip())


def _opponent_nll(run: Run, player: str) -> float | None:
    return number(run.scores.get(run.opponent(player) or "", {}), "nll")


def _point(run: Run, axis: Any, x: float, player: str) -> None:
    """A judged player: filled marker, interval, its value written above."""
    row = run.scores.get(player, {})
    value, low, high = (number(row, key) for key in ("nll", "nll_low", "nll_high"))
    if value is None:
        return
    if low is not None and high is not None:
        axis.vlines(x, low, high, color=REAL, linewidth=1.2)
    axis.plot([x], [value], "o", color=REAL)
    axis.annotate(
        fixed(value),
        (x, max(value, high or value)),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        color=INK,
    )


def _learning(run: Run, axis: Any, x: float, phase: str, ends: tuple[float | None, float | None]) -> None:
    """From x to x + 1: the checks of a phase, between the values at its two ends."""
    checks = run.checks.get(phase, [])
    steps = run.steps.get(phase, [])
    planned = number(steps[-1], "steps") if steps else None
    kept = number(checks[-1], "kept") if checks else None  # what came after it was rolled back
    if kept is not None:
        checks, planned = [row for row in checks if (number(row, "step") or 0.0) <= kept], kept
    length = max([planned or 0.0, 1.0, *(number(row, "step") or 0.0 for row in checks)])
    inner = [
        (x + (number(row, "step") or 0.0) / length, value)
        for row in checks
        if (value := number(row, "heldout_nll")) is not None
    ]
    whole = [(x, ends[0]), *inner, (x + 1, ends[1])]
    line = [(place, value) for place, value in whole if value is not None]
    if line:
        axis.plot(*zip(*line, strict=True), color=REAL)
    if inner:
        axis.plot(*zip(*inner, strict=True), ".", color=REAL, markersize=5, linestyle="none")


def _before_panel(run: Run, axis: Any) -> None:
    ends = (number(run.scores["base"], "nll"), number(run.scores["sft"], "nll"))
    _learning(run, axis, 0.0, "sft", ends)
    _point(run, axis, 0.0, "base")
    _point(run, axis, 1.0, "sft")
    axis.set_title("fine-tuning")
    axis.set_xticks([0, 1], ["base", "θ₀"])
    axis.set_xlim(-0.45, 1.45)
    axis.margins(y=0.16)


def _play_panel(run: Run, axis: Any, played: Sequence[str]) -> None:
    ticks, labels = [0.0], ["θ₀"]
    _point(run, axis, 0.0, run.start)
    for index, player in enumerate(played):
        x = 2.0 * index
        begun = _opponent_nll(run, player)
        if begun is not None:
            axis.plot([x, x + 1], [begun, begun], color=MUTED, linestyle="--", linewidth=1.3)
            axis.plot([x + 1], [begun], "o", color=MUTED, markerfacecolor=PAPER)
        ended = number(run.scores.get(player, {}), "nll")
        _learning(run, axis, x + 1, f"{player}/player", (begun, ended))
        _point(run, axis, x + 2, player)
        ticks += [x + 1, x + 2]
        labels += ["played" if len(played) <= 3 else "", brief(run.label(player), 12)]
    axis.set_title("self-play")
    axis.set_xticks(ticks, labels)
    axis.set_xlim(-0.45, 2.0 * len(played) + 0.45)
    axis.margins(y=0.16)


PLOTS: tuple[Callable[[Run], Plot | None], ...] = (
    reward_plot,
    policy_plot,
    tuning_plot,
    nll_plot,
    logprob_plot,
    loss_plot,
    answers_plot,
    seconds_plot,
    exact_plot,
    best_of_plot,
)
