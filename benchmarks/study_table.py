"""Print a study as the tables of docs/results.md: `python -m benchmarks.study_table RUNS/NAME.compare [metric …]`.

Along an axis: a line for each value, with fine-tuning and self-play side by side, as in docs/methods.md.

--svg FILE writes its picture of the arms, too, in the colours of a light page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sparring.report.study import read_study
from sparring.report.study_plots import draw_study
from sparring.report.svg import VARIABLES


def main() -> None:
    """Two tables: the arms on the primary metric and on others, and what each spent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("metrics", nargs="*", default=["nll", "length", "end_rate"])
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    if options.svg is not None:
        options.svg.write_text(picture(options.folder), encoding="utf-8")
    study: dict[str, Any] = json.loads((options.folder / "study.json").read_text(encoding="utf-8"))
    primary, reference = study["primary"], study["reference"]
    others = [metric for metric in options.metrics if metric != primary]
    print(study["headline"] + "\n")
    if study.get("axis"):
        _along(study)
        return
    header = ["arm", "chosen", f"{primary}, best", "last", f"Δ to {reference} [95 %]", "p (Holm)", *others]
    _line(header)
    _line(["---"] * len(header))
    for arm in study["arms"]:
        gap = arm["against"].get(reference, {}).get(primary)
        compared = ["–", "–"] if gap is None else [_gap(gap), f"{gap['holm']:.3f}"]
        values = [_mean(arm["values"], metric) for metric in others]
        grid = arm["grid"]
        chosen = f"{grid['key'].split('.')[-1]} {grid['chosen']:g}" if grid else "–"
        _line([arm["label"], chosen, _mean(arm["values"], primary), _mean(arm["last"], primary), *compared, *values])
    print()
    _line(["arm", "steps", "tokens", "FLOPs", "seconds", "players handed over"])
    _line(["---"] * 6)
    for arm in study["arms"]:
        spent = [f"{arm['budget'][unit]:.4g}" for unit in ("steps", "tokens", "flops", "seconds")]
        _line([arm["label"], *spent, ", ".join(run["label"] for run in arm["runs"])])


def _along(study: dict[str, Any]) -> None:
    arms, primary = {arm["name"]: arm for arm in study["arms"]}, study["primary"]
    first = study["axis"]["pairs"][0][1]
    _line([study["axis"]["key"], f"SFT: {primary} [95 %]", "self-play", f"Δ to {first} [95 %]", "Δ to its SFT [95 %]",
           "lr of SFT, self-play", "parameters", "disk KiB", "seconds", "play, learn tok/s", "peak MiB"])  # fmt: skip
    _line(["---"] * 11)
    for alone, plays in study["axis"]["pairs"]:
        sft, arm = arms[alone], arms[plays]
        costs, gaps = arm["costs"], arm["against"]
        seconds = sum(costs[f"{part}_seconds"] for part in ("sft", "play", "score", "learn"))
        chosen = [f"{one['grid']['chosen']:.2g}" for one in (sft, arm) if one["grid"]]
        cells = [f"{_spread(one, primary)}" for one in (sft, arm)]
        cells += [_gap(gaps[other][primary]) if other in gaps else "–" for other in (first, alone)]
        cells += [
            ", ".join(chosen),
            f"{costs['trainable']:,.0f}",
            f"{costs['disk_bytes'] / 1024:,.1f}",
            f"{seconds:.0f}",
        ]
        cells += [", ".join(f"{costs[f'{what}_tokens_per_second']:,.0f}" for what in ("play", "learn"))]
        _line([plays, *cells, f"{costs['memory_bytes'] / 2**20:,.0f}"])


def _spread(arm: dict[str, Any], metric: str) -> str:
    found = arm["values"][metric]
    return f"{found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def picture(folder: Path) -> str:
    """The forest plot as a file of its own."""
    return standalone(next(plot for plot in draw_study(read_study(folder)) if plot.name == "forest").svg)


def standalone(drawn: str) -> str:
    """A page's drawing as a file of its own, in the colours of a light page."""
    for colour, name in VARIABLES.items():
        drawn = drawn.replace(f"var(--{name})", colour)
    return drawn.replace("<svg ", '<svg style="background:#fefefe;font-family:sans-serif" ', 1) + "\n"


def _line(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |")


def _mean(values: dict[str, Any], metric: str) -> str:
    return f"{values[metric]['mean']:.4f}" if metric in values else "–"


def _gap(gap: dict[str, float]) -> str:
    return f"{gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]".replace("-", "−")


if __name__ == "__main__":
    main()
