"""How cost grows with prompt length, answer length, answers per prompt, number of pairs, and size of the model.

    python -m benchmarks.growth                     about ten minutes on two threads
    python -m benchmarks.growth --points 2 --model micro --out FOLDER

Each point is one iteration in a fresh process, of ours and of rival B (transformers and TRL, tuned; see
benchmarks.iteration). Learning includes the opponent's log-probs. Writes learn.svg, play.svg and growth.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Result, child, need_trl, prepare
from benchmarks.settings import MODELS, Settings

NAMES = {"ours": "Sparring", "b": "transformers + TRL, tuned"}
PARTS = {"play": ("play",), "learn": ("score", "reference", "learn")}
TITLES = {"play": "Playing: answering every prompt", "learn": "Learning: one epoch, opponent's log-probs included"}


@dataclass(frozen=True, slots=True)
class Axis:
    """What is varied: its label, its values, and the settings of a value. The smallest values come first."""

    label: str
    values: tuple[Any, ...]
    vary: Any


def axes(start: Settings) -> list[Axis]:
    """The five axes around one starting point."""
    prompt, real, synthetic = start.lengths
    return [
        Axis("prompt (tokens)", (32, 64, 128, 256), lambda x: replace(start, lengths=(x, real, synthetic))),
        Axis("each answer (tokens)", (16, 48, 96, 192), lambda x: replace(start, lengths=(prompt, x, x))),
        Axis("answers per prompt", (1, 2, 4, 8), lambda x: replace(start, samples=x)),
        Axis("pairs", (8, 16, 32, 48), lambda x: replace(start, pairs=x)),
        Axis("parameters (million)", ("micro", "tiny", "135m"), lambda x: replace(start, model=x)),
    ]


def main() -> None:
    """Measure every point once, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="tiny", help="of all axes but the last (default tiny)")
    parser.add_argument("--points", type=int, default=4, help="values per axis, the smallest first (default 4)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=tuple(NAMES), help="one contestant")
    parser.add_argument("--out", type=Path, default=Path("docs/performance"))
    options = parser.parse_args()
    need_trl()
    start = Settings("iteration", options.model, lengths=(64, 48, 48), pairs=8, threads=options.threads)
    contestants = [options.only] if options.only else list(NAMES)
    found: dict[Settings, Result] = {}
    series = []
    for axis in axes(start):
        points = []
        for value in axis.values[: options.points]:
            settings = axis.vary(value)
            if settings not in found:
                found[settings] = _measure(settings, contestants)
            x = value if isinstance(value, int) else found[settings]["parameters"] / 1e6
            points.append({"x": x, **found[settings]})
        series.append({"axis": axis.label, "points": points})
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"start": asdict(start), "series": series}
    (options.out / "growth.json").write_text(json.dumps(content, indent=1) + "\n")
    for part in PARTS:
        draw(series, part, start, options.out / f"{part}.svg")


def _measure(settings: Settings, contestants: list[str]) -> Result:
    """Cost of playing and learning at one point, by contestant, and the model's size."""
    with tempfile.TemporaryDirectory(prefix="sparring-bench-") as name:
        folder = Path(name)
        made = prepare(folder, settings)
        costs = {who: _costs(child(folder, who, settings)) for who in contestants}
    return {"parameters": made["parameters"], **costs}


def _costs(result: Result) -> Result:
    return {
        kind: {
            "cpu": sum(part["cpu"] for name, part in result["parts"].items() if name in names),
            "peak": max(part["peak"] for name, part in result["parts"].items() if name in names),
        }
        for kind, names in PARTS.items()
    }


def draw(series: list[Result], part: str, start: Settings, path: Path) -> None:
    """One figure: seconds above, memory below, a column per axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 8}
    figure, grid = plt.subplots(2, len(series), figsize=(2.4 * len(series), 4.4), layout="constrained", squeeze=False)
    rows = (("cpu", "CPU seconds", 1.0), ("peak", "peak memory over the weights (MiB)", 2.0**20))
    for column, one in enumerate(series):
        for row, (key, label, unit) in enumerate(rows):
            axes_ = grid[row][column]
            for who, name in NAMES.items():
                points = [point for point in one["points"] if who in point]
                if not points:
                    continue
                ys = [point[who][part][key] / unit for point in points]
                axes_.plot([point["x"] for point in points], ys, marker="o", markersize=3, linewidth=1, label=name)
            axes_.set_ylim(bottom=0)
            axes_.set_xlim(left=0)
            axes_.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes_.set_ylabel(label)
            if row == 1:
                axes_.set_xlabel(one["axis"])
    lengths = "prompt {}, answers {} and {} tokens".format(*start.lengths)
    figure.suptitle(
        f"{TITLES[part]}; {start.model} model, fp32, {start.threads} threads; where not varied: {lengths}, "
        f"{start.pairs} pairs",
        fontsize=9,
    )
    grid[0][0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
