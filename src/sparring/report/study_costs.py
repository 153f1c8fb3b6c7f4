"""Along an axis: what each arm reached and what it cost, as a table, as CSV, and as quality against parameters."""

from __future__ import annotations

from itertools import pairwise
from math import log10
from typing import Any

from matplotlib.ticker import LogLocator

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
    "libraries are in it, and a little of what earlier runs of the same process left behind.",
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
    sized = [pair for pair in study.pairs if all(_size(arm) and _reached(study, arm) for arm in pair)]
    if not sized:
        return None
    sized.sort(key=lambda pair: _size(pair[1]) or 1.0)
    made, (axis,) = figure(1, 3.9)
    places, gap = _places([_size(play) or 1.0 for _, play in sized])
    for place, (alone, play) in zip(places, sized, strict=True):
        size, ends = _size(play), []
        for arm, x, colour, fill in ((alone, place - gap / 5, SYNTHETIC, PAPER), (play, place + gap / 5, REAL, REAL)):
            mean, low, high = _reached(study, arm) or (0.0, None, None)
            if low is not None and high is not None:
                axis.vlines(10**x, low, high, color=colour, linewidth=2)
            axis.plot([10**x], [mean], "o", color=colour, markerfacecolor=fill, zorder=3)
            ends.append((10**x, mean, mean if high is None else high))
        axis.plot([x for x, _, _ in ends], [mean for _, mean, _ in ends], color=MUTED, linewidth=1)
        name, top = play.label.removesuffix(" self-play"), max(high for _, _, high in ends)
        axis.annotate(
            brief(name, 16), (10**place, top), (0, 5), textcoords="offset points", color=INK, rotation=90, ha="center"
        )
        said.append(f"{name}: {count(size)} parameters, SFT {plain(ends[0][1])}, self-play {plain(ends[1][1])}")
    axis.set_xscale("log")
    axis.set_xlim(10 ** (places[0] - gap), 10 ** (places[-1] + gap))
    axis.margins(y=0.2)
    marks = (1.0,) if places[-1] - places[0] > 1.2 else (1.0, 2.0, 5.0)
    axis.xaxis.set_major_locator(LogLocator(subs=marks))
    axis.xaxis.set_major_formatter(lambda value, _: count(value))
    axis.xaxis.set_minor_formatter(lambda value, _: "")
    axis.grid(axis="x", color=GRID)
    axis.set_xlabel("trained parameters")
    axis.set_ylabel(brief(f"{metric.label}{f', {metric.unit}' if metric.unit else ''}", 40))
    title = f"{metric.label} against trained parameters"
    caption = (
        "Hollow: SFT; filled: self-play from it. Bars are 95 % intervals, of which two may overlap though their "
        "difference is certain. Values of nearly equal size are drawn beside each other."
    )
    if metric.better:
        caption += f" {metric.better.capitalize()} is better."
    return Plot("parameters", title, to_svg(made, "parameters", title, f"{'; '.join(said)}."), caption)


def _places(sizes: list[float]) -> tuple[list[float], float]:
    """The sizes' powers of ten, of rising sizes, moved apart where they would touch; and the least distance."""
    places = [log10(size) for size in sizes]
    gap = max(places[-1] - places[0], 1.0) / 12
    for _ in places:
        for left, right in pairwise(range(len(places))):
            overlap = gap - (places[right] - places[left])
            if overlap > 0:
                places[left] -= overlap / 2
                places[right] += overlap / 2
    return places, gap


def _reached(study: Study, arm: Arm) -> tuple[float, float | None, float | None] | None:
    return estimate(arm.values.get(study.primary.key))


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
