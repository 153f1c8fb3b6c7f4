"""Where does self-play help? Small studies of the laboratory under settings that might favour it, every one shown.

    python -m benchmarks.sweep_study --out FOLDER [--jobs 4] [--only NAME …]

Each setting is a study of its own: SFT, continued SFT, SPIN and SPIN + anchor at equal FLOPs, 3 seeds, two learning
rates. Printed are paired differences to continued SFT with 95 % intervals, and at the end Holm's correction over all
that was printed. The tables in docs/results.md come from here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sparring.configfile import read_config
from sparring.evaluation.paired import holm
from sparring.study import run_study

RECIPE = Path(__file__).parents[1] / "recipes" / "study-laboratory.yaml"
SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "SFT of 1 epoch": ["sft.epochs=1"],
    "from the base": ["sft.epochs=0"],
    "rank 1": ["method.r=1", "method.alpha=2"],
    "noisy demonstrations": ["data.subset=noisy"],
    "100 examples": ["data.split=[:100]", "sft.epochs=10"],
    "K = 1": ["selfplay.samples=1"],
    "K = 8": ["selfplay.samples=8"],
    "refreshed six times": ["selfplay.iterations=6", "selfplay.epochs=0.5", "selfplay.lr_decay=0.8"],
    "no pairs of before": ["selfplay.previous=0"],
    "beta 0.1": ["selfplay.beta=0.1"],
    "beta 5": ["selfplay.beta=5"],
}
METRICS = ("nll", "exact_kl", "valid_mass")
ARMS = ("spin", "spin-anchor")


def study(out: Path, name: str, changes: list[str], jobs: int) -> dict[str, Any]:
    """One study; found again if it was made."""
    place = name.replace(" ", "-").replace("=", "").replace(".", "")
    compare = (
        f"compare={{seeds: [0, 1, 2], arms: [sft, continued, spin, spin-anchor], lr: [2.0e-4, 6.0e-4], jobs: {jobs}}}"
    )
    config = read_config(RECIPE, [*changes, f"runs={out}", f"name={place}", compare])
    found: dict[str, Any] = json.loads((run_study(config, say=lambda text: None) / "study.json").read_text())
    return found


def main() -> None:
    """Run the studies, and print a line for each arm in each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=SETTINGS)
    options = parser.parse_args()
    family: dict[str, float] = {}
    print("| setting | arm | SFT's exact KL | Δ NLL | Δ exact KL | Δ valid mass |\n|---|---|---|---|---|---|")
    for name in options.only or SETTINGS:
        arms = {arm["name"]: arm for arm in study(options.out, name, SETTINGS[name], options.jobs)["arms"]}
        for arm in ARMS:
            gaps = arms[arm]["against"]["continued"]
            family |= {f"{name}, {arm}, {metric}": gaps[metric]["p"] for metric in METRICS}
            cells = [_cell(gaps[metric], metric) for metric in METRICS]
            start = arms["sft"]["values"]["exact_kl"]["mean"]
            print(f"| {name} | {arms[arm]['label']} | {start:.3f} | {' | '.join(cells)} |", flush=True)
    print(f"\n{len(family)} comparisons; after Holm's correction over all of them, p < .05:")
    for name, p in sorted(holm(family).items(), key=lambda item: item[1]):
        if p < 0.05:
            print(f"* {name}: p = {p:.3g}")


def _cell(gap: dict[str, float], metric: str) -> str:
    digits = 4 if metric == "nll" else 3
    mark = "" if gap["low"] <= 0 <= gap["high"] else (" +" if (gap["mean"] > 0) == (metric == "valid_mass") else " −")
    return f"{gap['mean']:+.{digits}f} [{gap['low']:+.{digits}f}, {gap['high']:+.{digits}f}]{mark}".replace("-", "−")


if __name__ == "__main__":
    main()
