"""Does reinforcement learning raise validity in the laboratory beyond more fine-tuning at an equal budget?

    python -m benchmarks.reinforce_laboratory --out runs/rl [--seeds 1 2 3 4 5] [--set reinforce.beta=0.2 …]

Per seed one θ_0, and from it: reinforcement learning on the exact validity of an answer, and fine-tuning that goes on
with the FLOPs that the former spent on playing, scoring and learning, at three learning rates. Of RL the player with
the highest held-out reward is measured; of fine-tuning the last one, which has spent it all, at the learning rate whose
last players have the highest held-out validity, and the one with the lowest held-out NLL, at the rate whose such
players do. All on test prompts that chose nothing; intervals are over seeds and prompts. Finished runs are not made
again. One thread, eleven minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparring.cli_reinforce import EMBEDDED
from sparring.configfile import read_config
from sparring.evaluation.metrics import METRICS, columns
from sparring.evaluation.paired import compare, mean_interval
from sparring.files import read_json
from sparring.job import run_job
from sparring.laboratory import default_config

RATES = ("2.0e-4", "6.0e-4", "2.0e-3")  # of the fine-tuning that goes on: from self-play's to fine-tuning's
SHOWN = ("valid_mass", "exact_kl", "template_kl", "nll")
SPENT = ("played", "scored", "player")
FIXED = ["data.test_size=200", "threads=1", "evaluation.show=0"]


def run(out: Path, name: str, seed: int, changes: Sequence[str], like: Path | None) -> Path:
    """One run of the embedded default; finished phases are not made again."""
    settings = [*FIXED, *changes, f"runs={out}", f"name={name}-{seed}", f"seed={seed}"]
    return run_job(read_config(default_config(), settings), like=like)


def spent(folder: Path, phases: Sequence[str] = SPENT) -> int:
    """FLOPs of the iterations' phases of these kinds."""
    markers = [path for phase in phases for path in folder.glob(f"[0-9]*/{phase}/phase.json")]
    return sum(int(read_json(path)["facts"]["flops"]) for path in markers)


def tested(folder: Path, which: str) -> list[dict[str, Any]]:
    """The test rows of the run's best or last player, which may be one."""
    path = folder / "test" / f"{which}.jsonl"
    path = path if path.exists() else path.with_name("best.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def held_out(folder: Path, which: str) -> float:
    """The best or last player's valid mass on the held-out prompts."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    scores = [event for event in map(json.loads, lines) if event["event"] == "scores" and event["player"] != "base"]
    found = {event["player"]: float(event["exact"]["valid_mass"]) for event in scores}
    return found[read_json(folder / "best" / "best.json")["player"]] if which == "best" else list(found.values())[-1]


Arms = dict[str, tuple[list[Path], str]]


def arms(out: Path, seeds: Sequence[int], changes: Sequence[str]) -> Arms:
    """Every arm's runs, one per seed, and which player of each."""
    first = [run(out, "start", seed, ["selfplay.iterations=0"], None) for seed in seeds]
    rl, more = [], {rate: [] for rate in RATES}
    for seed, start in zip(seeds, first, strict=True):
        rl.append(run(out, "rl", seed, [*EMBEDDED[1:], *changes], start))
        budget = spent(rl[-1])
        for rate in RATES:
            continued = [
                "selfplay.negatives=none", f"selfplay.lr={rate}", "selfplay.iterations=4", "selfplay.lr_decay=1",
                f"selfplay.budget={{unit: flops, amount: {budget}}}", "selfplay.stop_nll_rise=null",
                "selfplay.stop_real_drop=null", "selfplay.checks_per_iteration=0",
            ]  # fmt: skip
            more[rate].append(run(out, f"sft-{rate}", seed, continued, start))
            done = spent(more[rate][-1], ("player",))
            print(f"seed {seed}: RL {budget:.3g} FLOPs, more SFT at {rate} {done:.3g}", flush=True)
    made: Arms = {"θ_0": (first, "best"), "RL": (rl, "best")}
    for arm, which in (("more SFT", "last"), ("more SFT by NLL", "best")):
        rate = max(RATES, key=lambda rate: sum(held_out(folder, which) for folder in more[rate]))
        print(f"{arm}: lr {rate} has the highest validity on held-out prompts")
        made[arm] = (more[rate], which)
    return made


def table(found: Arms) -> list[dict[str, Any]]:
    """A row per metric and arm: mean with interval over seeds and prompts, and RL's difference to the arm."""
    rows = {arm: [tested(folder, which) for folder in folders] for arm, (folders, which) in found.items()}
    lines = []
    for name in SHOWN:
        metric = METRICS[name]
        tables = {arm: [columns(metric, each) for each in seeds] for arm, seeds in rows.items()}
        numbers = {arm: [part[0] for part in parts if part] for arm, parts in tables.items()}
        weights = [part[1] for part in tables["RL"] if part]
        for arm in found:
            gap = None if arm == "RL" else compare(numbers["RL"], numbers[arm], weights, better=metric.better)
            mean, low, high = mean_interval(numbers[arm], weights)
            line = {"metric": name, "arm": arm, "mean": mean, "low": low, "high": high}
            lines.append(line | {"rl": gap and [gap.mean, gap.low, gap.high, gap.p]})
    return lines


def main() -> None:
    """Run, and print the table and a line of JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value")
    options = parser.parse_args()
    begun = time.process_time()
    lines = table(arms(options.out, options.seeds, options.set))
    for line in lines:
        gap = "" if line["rl"] is None else "   RL - this {:+.4f} [{:+.4f}, {:+.4f}], p {:.3f}".format(*line["rl"])
        print(f"{line['metric']:12s} {line['arm']:16s} {line['mean']:.4f} [{line['low']:.4f}, {line['high']:.4f}]{gap}")
    print(json.dumps({"seeds": options.seeds, "rows": lines, "cpu_seconds": time.process_time() - begun}))


if __name__ == "__main__":
    main()
