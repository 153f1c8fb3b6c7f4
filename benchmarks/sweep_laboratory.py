"""Sweep the embedded default's self-play settings over seeds, and print exact KL and held-out NLL of every player.

    python benchmarks/sweep_laboratory.py --out FOLDER [--seeds 0 1 2] [--set key=v1,v2 …]

Every combination of the --set values is a run of the embedded default. Where the numbers in dev/LOG.md and in
the default's comments come from.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from sparring.configfile import read_config
from sparring.job import run_job
from sparring.laboratory import default_config


def players(folder: Path) -> dict[str, dict[str, Any]]:
    """The judgement of every player of a finished run, by name."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["player"]: line for line in lines if line["event"] == "scores"}


def main() -> None:
    """Run the grid; finished runs are not repeated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="key=v1;v2", help="values apart by semicolons")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    keys = [item.partition("=")[0] for item in options.set]
    values = [item.partition("=")[2].split(";") for item in options.set]
    for number, chosen in enumerate(itertools.product(*values)):
        overrides = [f"{key}={value}" for key, value in zip(keys, chosen, strict=True)]
        found = []
        for seed in options.seeds:
            name = f"{'-'.join(chosen) or 'default'}-{seed}".replace("/", "_")
            fixed = [f"runs={options.out}", f"name={name}", f"seed={seed}", f"threads={options.threads}"]
            found.append(players(run_job(read_config(default_config(), [*overrides, *fixed]))))
        if number == 0:
            print("settings | " + " | ".join(f"{name} KL, NLL" for name in found[0]))
        cells = []
        for name in found[0]:
            kl = [run[name]["exact"]["kl"] for run in found]
            nll = [run[name]["nll"] for run in found]
            spread = statistics.stdev(kl) if len(kl) > 1 else 0.0
            cells.append(f"{statistics.mean(kl):.3f} ±{spread:.3f}, {statistics.mean(nll):.4f}")
        print(" ".join(overrides) + " | " + " | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
