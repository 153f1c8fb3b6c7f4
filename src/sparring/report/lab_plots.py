"""Figures of the laboratory's worlds A and B: the numbers of lab.json in, inline SVG out.

Every caption says what theory predicts and what was measured. World C's are in lab_faults.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from sparring.report.svg import GREEN, INK, MUTED, PAPER, PURPLE, REAL, SYNTHETIC, Plot, end_labels, figure, to_svg

Numbers = Mapping[str, Any]
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
SAME = 1e-6  # nats: KLs closer than this are one stationary point's
FLOOR = 1e-5  # below which an error is drawn as 0


def law_5_plot(world: Numbers) -> Plot:
    """Cosine of the expected gradient with the likelihood's, per loss, and what gradient steps then do."""
    found = world["law_5"]
    made, (cosine, course) = figure(2, 4.8)
    names = list(found["losses"])
    for place, name in enumerate(names):
        row = found["losses"][name]
        cosine.plot([place - 0.1], [row["sampled"]["cosine"]], "o", color=REAL)
        cosine.plot([place + 0.1], [row["greedy"]["cosine"]], "s", color=SYNTHETIC)
    cosine.axhline(1, color=MUTED, linestyle="--", linewidth=1)
    cosine.set_title("cosine of the gradients of SPIN and likelihood")
    staggered = ["\n" * (place % 2) + name for place, name in enumerate(names)]
    cosine.set_xticks(range(len(names)), staggered)
    cosine.set_xlim(-0.5, len(names) - 0.5)
    cosine.set_ylim(min(-0.05, *(row["greedy"]["cosine"] for row in found["losses"].values())) - 0.1, 1.15)
    last = []
    for name, colour, style in (("sampled", REAL, "o-"), ("greedy", SYNTHETIC, "s-")):
        values = found["descent"][name]
        course.plot(range(len(values)), values, style, color=colour)
        last.append((_log(values[-1]), f"{name} y′", colour))
    _decades(course)
    course.set_title("KL(p_data ‖ θₜ), nats, by gradient steps")
    course.set_xlabel("iteration t")
    _log_labels(course, last)
    sampled = [row["sampled"] for row in found["losses"].values()]
    worst = max(abs(1 - row["cosine"]) for row in sampled)
    gap = max(abs(row["sampled"]["ratio"] - row["theory"]) for row in found["losses"].values())
    greedy = [row["greedy"]["cosine"] for row in found["losses"].values()]
    caption = (
        "Theory: at θ = θₜ, with y′ sampled from θₜ, the expected gradient is −ℓ′(0)·λ times the likelihood's: "
        "cosine 1, for every ℓ. "
        f"Measured at {found['players']} players, the furthest of them shown: 1 − cosine is at most {worst:.1g}, and "
        f"the ratio of the lengths differs from −ℓ′(0)·λ by at most {gap:.1g}. With the likeliest arm as y′ the "
        f"cosine falls to {min(greedy):.2f}, and the same gradient steps end at KL "
        f"{found['descent']['greedy'][-1]:.3f} instead of {found['descent']['sampled'][-1]:.4f}."
    )
    title = "Law 5: samples make SPIN's gradient the likelihood's"
    return Plot("law5", title, to_svg(made, "law5", title, caption), caption)


def law_7_plot(world: Numbers) -> Plot:
    """Error of the log-ratio by iteration, one line per λ, theory dashed."""
    rows = world["law_7"]["betas"]
    made, (axis,) = figure(1, 3.9)
    labels = []
    for (beta, row), colour in zip(rows.items(), (SYNTHETIC, PURPLE, GREEN, INK, REAL, MUTED), strict=True):
        theory = [max(value, FLOOR) for value in row["theory"]]
        measured = [max(value, FLOOR) for value in row["errors"]]
        axis.plot(range(len(theory)), theory, "--", color=colour, linewidth=1.2)
        axis.plot(range(len(measured)), measured, "o", color=colour, clip_on=False)
        labels.append((_log(measured[-1]), f"λ = {beta}", colour))
    _decades(axis)
    axis.set_ylim(FLOOR, 40)
    axis.set_xlabel("iteration t")
    axis.set_title("distance of log pₜ from log p_data")
    _log_labels(axis, labels, gap=0.07)
    far = [
        abs(value / wanted - 1)
        for row in rows.values()
        for value, wanted in zip(row["errors"], row["theory"], strict=True)
        if wanted > FLOOR
    ]
    caption = (
        "Theory (dashed): with players that may be any table, each iteration multiplies the error by 1 − 1/λ: λ = 1 "
        "arrives in one step, λ above ½ converges, below ½ diverges. "
        f"Measured (dots): it differs from theory by at most {max(far):.1g} of its size. Errors below {FLOOR:g} are "
        "drawn at the lower edge."
    )
    title = "Law 7: how fast SPIN converges"
    return Plot("law7", title, to_svg(made, "law7", title, caption), caption)


def law_8_plot(world: Numbers) -> Plot:
    """Least loss against λ for three opponents; theory as lines."""
    rows = world["law_8"]["opponents"]
    made, (axis,) = figure(1, 3.3)
    labels = []
    for (name, row), colour in zip(rows.items(), (SYNTHETIC, PURPLE, REAL), strict=True):
        betas = [float(beta) for beta in row["least"]]
        axis.plot([betas[0] * 0.9, betas[-1] * 1.1], [row["theory"]] * 2, "--", color=colour, linewidth=1.2)
        axis.plot(betas, list(row["least"].values()), "o", color=colour)
        labels.append((row["theory"], name.replace(" to ", "\nto "), colour))
    axis.set_xscale("log")
    axis.set_xticks(betas, [f"{beta:g}" for beta in betas])
    axis.minorticks_off()
    axis.set_xlabel("λ")
    axis.set_title("SPIN's least loss, nats, when the opponent is …")
    axis.margins(y=0.15)
    end_labels(axis, labels, gap=0.13)
    far = [abs(value - row["theory"]) for row in rows.values() for value in row["least"].values()]
    caption = (
        "Theory (lines): the least logistic loss is log 2 − JSD(p_data⊗pₜ ‖ pₜ⊗p_data), whatever λ is: it says how "
        "near the opponent is, and rises towards log 2 as players get better. So losses of two iterations cannot be "
        f"compared. Measured (dots): they differ from theory by at most {max(far):.1g}."
    )
    title = "Law 8: the least loss tells of the opponent"
    return Plot("law8", title, to_svg(made, "law8", title, caption), caption)


def law_9_plot(world: Numbers) -> Plot:
    """KL at the likelihood's stationary points and at SPIN's ends, per rank."""
    found = world["law_9"]
    ranks = list(found["ranks"])
    made, (axis,) = figure(1, 3.3)
    likelihood = [found["base"], *(found["ranks"][rank]["stationary"][0] for rank in ranks)]
    axis.plot(range(len(likelihood)), likelihood, "-", color=MUTED, linewidth=1.2)
    axis.plot(range(len(likelihood)), likelihood, "s", color=MUTED, markerfacecolor=PAPER, markersize=11)
    for place, rank in enumerate(ranks, 1):
        for other in found["ranks"][rank]["stationary"][1:]:
            axis.plot([place], [other], "s", color=MUTED, markerfacecolor=PAPER, markersize=11)
        for end in found["ranks"][rank]["spin"]:
            axis.plot([place], [end["kl"]], "x", color=SYNTHETIC, markersize=7)
    for place, value in enumerate(likelihood):
        axis.annotate(_small(value), (place, value), xytext=(0, 11), textcoords="offset points", ha="center", color=INK)
    axis.set_xticks(range(len(likelihood)), ["base", *(f"rank {rank}" for rank in ranks)])
    axis.set_xlim(-0.4, len(ranks) + 0.4)
    axis.margins(y=0.2)
    axis.set_title("KL(p_data ‖ ·), nats: likelihood □, SPIN ×")
    ends = [(row["stationary"][0], end) for row in found["ranks"].values() for end in row["spin"]]
    gap = max(abs(end["kl"] - end["near"]) for _, end in ends)
    slope = max(end["gradient"] for _, end in ends)
    pull = max(row["pull"] for row in found["ranks"].values())
    best = sum(abs(end["kl"] - best) < SAME for best, end in ends)
    caption = (
        "Theory: under a rank limit too, SPIN stands still just where the likelihood is stationary, for every ℓ and λ. "
        f"Measured with λ = {found['beta']:g} from {len(ends) // len(ranks)} starting points per rank: {best} of "
        f"{len(ends)} ends are the maximum-likelihood player of their rank"
        + (", the others a lesser stationary point" if best < len(ends) else "")
        + f"; they differ from a stationary point by at most {gap:.1g} nats, and the gradient of the likelihood there "
        f"is at most {slope:.1g}. At the best likelihood SPIN's expected gradient is at most {pull:.1g} over all "
        f"losses and λ. The data have rank {world['rank']} over the base."
    )
    title = "Law 9: SPIN ends where likelihood ends"
    return Plot("law9", title, to_svg(made, "law9", title, caption), caption)


def split_plot(world: Numbers) -> Plot:
    """World B: each player's exact KL as wrong sums and wrong proportions."""
    players = list(world["players"])
    made, (axis,) = figure(1, 0.9 + 0.5 * len(players))
    total = {player: row["kl"] for player, row in world["players"].items()}
    for place, player in enumerate(players):
        template = world["players"][player]["template_kl"]
        valid = total[player] - template
        axis.barh(place, valid, height=0.62, color=SYNTHETIC)
        axis.barh(place, template, left=valid, height=0.62, color=REAL)
        axis.text(total[player] + 0.015 * max(total.values()), place, f"{total[player]:.3f}", va="center", color=INK)
    axis.set_yticks(range(len(players)), [player_name(player) for player in players])
    axis.set_ylim(len(players) - 0.45, -0.55)
    axis.set_xlim(0, 1.16 * max(total.values()))
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.grid(axis="y", visible=False)
    axis.set_title("exact KL(p_data ‖ player), nats per answer")
    axis.text(0.99, 0.1, "wrong sums: −log valid mass", color=SYNTHETIC, ha="right", transform=axis.transAxes)
    axis.text(0.99, 0.02, "wrong proportions of orders", color=REAL, ha="right", transform=axis.transAxes)
    fine_tuned, last = total[players[1]], total[players[-1]]
    caption = (
        "Theory: fine-tuning and SPIN have the same goal, so after converged fine-tuning self-play has nothing to add "
        "(law 9). Measured: fine-tuning takes the distance to the data from "
        f"{total[players[0]]:.3f} to {fine_tuned:.3f} nats, {len(players) - 2} rounds of self-play to {last:.3f}. The "
        "two parts add up exactly: answers that are no right sum, and right ones in other proportions than the data's."
    )
    title = "Where the distance to the data lies"
    return Plot("split", title, to_svg(made, "split", title, caption), caption)


def player_name(label: str) -> str:
    """A player's label as it is printed: θ₀ for θ_0."""
    return re.sub(r"_(\d+)", lambda found: found[1].translate(SUBSCRIPTS), label)


def _decades(axis: Any) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(lambda value, _: "")


def _log(value: float) -> float:
    """A value as its logarithm, for labels beside a logarithmic axis."""
    return math.log10(value)


def _log_labels(axis: Any, labels: list[tuple[float, str, str]], gap: float = 0.1) -> None:
    """`end_labels` for a logarithmic axis; the labels' heights are logarithms."""
    low, high = (_log(limit) for limit in axis.get_ylim())
    twin = axis.twinx()
    twin.set_ylim(low, high)
    twin.set_axis_off()
    end_labels(twin, labels, gap)


def _small(value: float) -> str:
    return f"{value:.4f}" if abs(value) >= 5e-5 else "0"
