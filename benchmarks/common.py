"""The parent's side: fresh processes in turn, medians, ratios, the table, and the line of JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.settings import Settings, parser, settings_of

Result = dict[str, Any]
NAMES = {"a": "A  usual pipeline", "b": "B  the same, tuned", "ours": "ours"}
PARTS = {"play": "playing", "score": "scoring the opponent", "reference": "the reference", "learn": "learning"}
QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",  # for all contestants: else time spent waiting counts as CPU seconds
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
}
KEEP = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"


def compare(work: str, doc: str, arguments: Sequence[str] | None = None) -> None:
    """Run a benchmark as its command line asks, and print what was found."""
    options = parser(doc).parse_args(arguments)
    settings = settings_of(work, options)
    need_trl()
    with tempfile.TemporaryDirectory(prefix="sparring-bench-") as name:
        folder = Path(name)
        made = prepare(folder, settings)
        rounds: list[dict[str, Result]] = []
        for number in range(options.repeats):
            _progress(f"{work}: round {number + 1} of {options.repeats}")
            rounds.append({who: child(folder, who, settings) for who in NAMES})
        # B takes the pairs in another order when lengths differ: its loss curve is compared in that order.
        regrouped = work != "play" and settings.spread > 0
        ordered = child(folder, "ours_b", settings) if regrouped else rounds[0]["ours"]
    found = summary(settings, rounds, ordered, made["device"])
    print("\n".join(table(found)))
    if options.json:
        print(json.dumps(found))


def need_trl() -> None:
    """End with one sentence when TRL is not there."""
    if find_spec("trl") is None:
        sys.exit("the rivals need TRL, which is not installed; get it with: pip install 'sparring[bench]'")


# ---------------------------------------------------------------- processes


def prepare(folder: Path, settings: Settings) -> Result:
    """Make model, start and pairs in the folder."""
    settings.write(folder)
    return child(folder, "prepare", settings)


def child(folder: Path, name: str, settings: Settings) -> Result:
    """What a contestant's fresh process found."""
    threads = str(settings.threads)
    more = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HOME": str(folder / "hub")}
    if settings.malloc == "keep":
        more["GLIBC_TUNABLES"] = KEEP
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", str(folder), name],
        env={**os.environ, **QUIET, **more},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        sys.exit(f"the contestant {name} failed ({reason})")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}", end="\r", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- what was found


def summary(settings: Settings, rounds: list[dict[str, Result]], ordered: Result, device: str) -> Result:
    """Medians and ratios: vs_a and vs_b are the rival's time over ours, memory_vs_a and _b our memory over the rival's.

    Time is CPU seconds, on CUDA wall seconds. A ratio is taken within each round.
    """
    first = rounds[0]
    if len({result["tokens"] for result in first.values()}) > 1:
        sys.exit("not the same work: tokens " + str({who: result["tokens"] for who, result in first.items()}))
    clock = "wall" if device == "cuda" else "cpu"
    time = {who: [turn[who][clock] / turn["ours"][clock] for turn in rounds] for who in ("a", "b")}
    memory = {who: [turn["ours"]["peak"] / max(1, turn[who]["peak"]) for turn in rounds] for who in ("a", "b")}
    gaps = [_gap(first["a"]["losses"], first["ours"]["losses"]), _gap(first["b"]["losses"], ordered["losses"])]
    reached = [turn["ours"]["flops"] / turn["ours"][clock] / turn["ours"]["rate"][clock] for turn in rounds]
    return {
        "vs_a": statistics.median(time["a"]),
        "vs_b": statistics.median(time["b"]),
        "memory_vs_a": statistics.median(memory["a"]),
        "memory_vs_b": statistics.median(memory["b"]),
        "loss_gap": max(gaps) if first["ours"]["losses"] else None,
        **_learning(rounds, clock),
        "vs_a_range": [min(time["a"]), max(time["a"])],
        "vs_b_range": [min(time["b"]), max(time["b"])],
        "losses": {who: result["losses"] for who, result in first.items()},
        "clock": clock,
        "tokens": first["ours"]["tokens"],
        "medians": {who: _medians([turn[who] for turn in rounds]) for who in NAMES},
        "matmul_gflops": statistics.median(turn["ours"]["rate"]["wall"] for turn in rounds) / 1e9,
        "matmul_gflop_per_cpu_second": statistics.median(turn["ours"]["rate"]["cpu"] for turn in rounds) / 1e9,
        "share_of_matmul_rate": statistics.median(reached),
        "settings": {**asdict(settings), "repeats": len(rounds), "device": device, "versions": _versions()},
    }


def _learning(rounds: list[dict[str, Result]], clock: str) -> Result:
    """The learning step alone, with all log-probs of opponent or reference given to those that can take them."""
    if "learn" not in rounds[0]["ours"]["parts"]:
        return {}
    ours, a, b = ([turn[who]["parts"]["learn"][clock] for turn in rounds] for who in ("ours", "a", "b"))
    return {
        "learning_vs_a": statistics.median(x / y for x, y in zip(a, ours, strict=True)),
        "learning_vs_b": statistics.median(x / y for x, y in zip(b, ours, strict=True)),
    }


def _medians(results: list[Result]) -> Result:
    """The median of every number, parts included."""
    keys = ("cpu", "system", "wall", "peak")
    parts = {
        name: {key: statistics.median(result["parts"][name][key] for result in results) for key in keys}
        for name in results[0]["parts"]
    }
    return {**{key: statistics.median(result[key] for result in results) for key in keys}, "parts": parts}


def _gap(one: list[float], other: list[float]) -> float:
    """The largest difference between two loss curves."""
    return max((abs(x - y) for x, y in zip(one, other, strict=True)), default=0.0)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "trl")}


# ---------------------------------------------------------------- the table


def table(found: Result) -> list[str]:
    """The lines that the benchmark prints."""
    s, versions, clock = found["settings"], found["settings"]["versions"], found["clock"].replace("cpu", "CPU")
    lengths = ",".join(map(str, s["lengths"]))
    kind = f"log-normal, sigma {s['spread']:g}" if s["spread"] else "all equal"
    lines = [
        f"{s['work']}: {s['model']} {s['dtype']} on {s['device']}, {s['threads']} threads, {s['pairs']} pairs of "
        f"{lengths} tokens ({kind}), {found['tokens']} useful tokens, seed {s['seed']}, malloc {s['malloc']}",
        f"medians of {s['repeats']} fresh processes each, in turn; "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        f"{'':24}{'CPU s':>9}{'of it kernel':>14}{'wall s':>9}{'memory over weights':>21}{f'tokens per {clock} s':>19}",
    ]
    for who, label in NAMES.items():
        cost = found["medians"][who]
        lines.append(_line(label, cost) + f"{found['tokens'] / cost[found['clock']]:>19.0f}")
        if len(cost["parts"]) > 1:
            lines += [_line(f"   {PARTS[name]}", part) for name, part in cost["parts"].items()]
    lines.append("")
    for who in ("a", "b"):
        low, high = found[f"vs_{who}_range"]
        lines.append(
            f"ours against {who.upper()}: {found[f'vs_{who}']:.2f} times as fast in {clock} seconds "
            f"({low:.2f} to {high:.2f}), {found[f'memory_vs_{who}']:.2f} of its memory over the weights"
        )
    if "learning_vs_a" in found:
        lines.append(
            f"the lines of learning alone (ours and B's with log-probs given, A's with its reference in every step): "
            f"{found['learning_vs_a']:.2f} and {found['learning_vs_b']:.2f} times as fast"
        )
    if found["loss_gap"] is not None:
        curve = found["losses"]["ours"]
        lines.append(
            f"loss {curve[0]:.4f} to {curve[-1]:.4f} in {len(curve)} steps; largest difference between the curves "
            f"{found['loss_gap']:.1e}"
        )
    share = found["share_of_matmul_rate"]
    lines.append(
        f"matrix products of this model's shapes: {found['matmul_gflops']:.0f} GFLOP/s, "
        f"{found['matmul_gflop_per_cpu_second']:.0f} per CPU second; ours reaches {100 * share:.0f} % of that, "
        "counting the least work there is"
    )
    if s["work"] != "play":
        limits = [f"{found[f'vs_{who}'] / share:.1f} times as fast as {who.upper()}" for who in ("a", "b")]
        lines.append(f"at the whole rate ours would be {' and '.join(limits)}: more is not to be had in {s['dtype']}")
    return lines


def _line(label: str, cost: Result) -> str:
    seconds = f"{cost['cpu']:>9.2f}{cost['system']:>14.2f}{cost['wall']:>9.2f}"
    return f"{label:24}{seconds}{cost['peak'] / 2**20:>17.0f} MiB"
