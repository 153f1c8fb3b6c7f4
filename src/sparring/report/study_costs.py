"""Along an axis: what each arm reached and what it cost, as a table, as CSV, and as quality against parameters."""

from __future__ import annotations

from typing import Any

from sparring.report.records import Row, number, text
from sparring.report.sheets import sheet
from sparring.report.study import Arm, Study, estimate
from sparring.report.svg import GRID, INK, MUTED, PAPER, REAL, SYNTHETIC, Plot, brief, drawing, figure, to_svg
from sparring.report.tables import MISSING, count, fixed
from sparring.report.tested import plain, ranged

SECONDS = {"SFT": "sft_seconds", "play": "play_seconds", "score": "score_seconds", "learn": "learn_seconds"}
MEMORY = {
    "GPU": "Memory is the peak of what the GPU's allocator gave out, in the phases of SFT, play, score and learn.",
    "process": "Memory is the process's resident peak in the phases of SFT, play, score and learn: Python and its "
    "libraries are in it.",
    "process so far": "Memory is the process's resident peak since it began, which may be of an earlier run: the "
    "system keeps no other account.",
}


def cost_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """A row per arm: quality, size, time, memory, speed, and what was chosen; no rows but along an axis."""
    metrics = [study.primary, *(m for m in study.metrics.values() if m.key == "exact_kl" != study.primary.key)]
    shown = [metric for metric in metrics if any(estimate(arm.values.get(metric.key)) for arm in study.arms)]
    header = ["arm", *(f"{m.label} [95 %]" if m is study.primary else m.label for m in shown), "parameters", "disk"]
    header += [f"{name} s" for name in SECONDS] + ["memory", "play tok/s", "learn tok/s", "lr"]
    rows = []
    for arm in (arm for pair in study.pairs for arm in pair):
        cells = [_quality(arm.values.get(metric.key), metric is study.primary) for metric in shown]
        cells += [count(number(arm.costs, "trainable")), _bytes(number(arm.costs, "disk_bytes"))]
        cells += [fixed(number(arm.costs, key) or None, 1) for key in SECONDS.values()]
        cells += [_bytes(number(arm.costs, "memory_bytes"))]
        cells += [count(number(arm.costs, f"{what}_tokens_per_second")) for what in ("play", "learn")]
        rows.append([arm.label, *cells, _chosen(arm)])
    return header, rows


def costs_csv(study: Study) -> str:
    """The same, unrounded, with the chosen values."""
    rows: list[Row] = []
    for arm in (arm for pair in study.pairs for arm in pair):
        quality = {f"{study.primary.key}_{key}": value for key, value in arm.values.get(study.primary.key, {}).items()}
        rows.append({"arm": arm.name, **quality, **arm.costs, "chosen": arm.grid.get("chosen")})
    return sheet(rows, ("arm",))


def measured_how(study: Study) -> str:
    """What stands under the table."""
    kinds = dict.fromkeys(text(arm.costs.get("memory_of")) for arm in study.arms)
    return " ".join(
        [
            "Means over the seeds of the chosen runs; of memory the highest. Disk: the weights of one player.",
            *(MEMORY[kind] for kind in kinds if kind in MEMORY),
            "Speeds: sampled tokens in play; tokens trained on in learning, with all that belongs to it.",
        ]
    )


def draw_costs(study: Study) -> list[Plot]:
    """Quality against trained parameters, if the study has an axis and says both."""
    with drawing():
        plot = _against_parameters(study)
    return [] if plot is None else [plot]


def _against_parameters(study: Study) -> Plot | None:
    """Each value's fine-tuning (hollow) and self-play (filled), joined; beside each other, so that intervals show."""
    metric, said = study.primary, []
    made, (axis,) = figure(1, 3.6)
    for alone, play in study.pairs:
        found = [(_size(arm), estimate(arm.values.get(metric.key))) for arm in (alone, play)]
        placed = [(size, numbers) for size, numbers in found if size and numbers is not None]
        if len(placed) < 2:
            continue
        places = [placed[0][0] / APART, placed[1][0] * APART]
        means = [numbers[0] for _, numbers in placed]
        axis.plot(places, means, color=MUTED, linewidth=1)
        for place, (_, (mean, low, high)), colour, fill in zip(
            places, placed, (SYNTHETIC, REAL), (PAPER, REAL), strict=True
        ):
            if low is not None and high is not None:
                axis.vlines(place, low, high, color=colour, linewidth=2)
            axis.plot([place], [mean], "o", color=colour, markerfacecolor=fill)
        name = play.label.removesuffix(" self-play")
        axis.annotate(
            brief(name, 14), (places[1], means[1]), (6, 0), textcoords="offset points", color=INK, va="center"
        )
        said.append(f"{name}: {count(placed[1][0])} parameters, SFT {plain(means[0])}, self-play {plain(means[1])}")
    if not said:
        return None
    axis.set_xscale("log")
    axis.margins(x=0.16)
    axis.grid(axis="x", color=GRID)
    axis.set_xlabel("trained parameters")
    axis.set_ylabel(brief(f"{metric.label}{f', {metric.unit}' if metric.unit else ''}", 40))
    title = f"{metric.label} against trained parameters"
    caption = (
        "Hollow: SFT; filled: self-play from it, drawn beside it; bars are 95 % intervals, of which two may overlap "
        f"though their difference is certain. {metric.better.capitalize()} is better."
    )
    return Plot("parameters", title, to_svg(made, "parameters", title, f"{'; '.join(said)}."), caption)


APART = 1.06  # by which factor the two of a pair are moved apart


def _size(arm: Arm) -> float | None:
    return number(arm.costs, "trainable") or None


def _quality(row: Row | None, whole: bool) -> str:
    found = estimate(row)
    return MISSING if found is None else f"{plain(found[0])} {ranged(*found[1:]) if whole else ''}".strip()


def _bytes(value: float | None) -> str:
    """Bytes as KiB or MiB."""
    if value is None:
        return MISSING
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"


def _chosen(arm: Arm) -> str:
    value: Any = arm.grid.get("chosen")
    return MISSING if value is None else f"{value:g}" if isinstance(value, float) else text(value)
