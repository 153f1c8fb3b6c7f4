"""One step of learning from rewards: Sparring's phases against TRL's GRPOTrainer, from the same adapter.

    python -m benchmarks.reinforce --lengths 121,1,64 --samples 8
    python -m benchmarks.reinforce --model 135m --lengths 64,1,64 --pairs 4 --step 4 --json

What is timed: sampling a group of `--samples` answers of R tokens to each prompt, log-probs under the player and under
θ_0 (here the base: KL counts), the loss, its gradient and the update, for --pairs prompts, --step of them per update.
A   GRPOTrainer as it comes: gradient checkpointing, a group at a time, `generate` with the adapter attached
B   the same, tuned: no checkpointing, all rows of an update at once
Answers have one length, so that nobody pads; real ones differ, and what TRL pads then is not counted against it here.
TRL samples anew before each update; ours samples for all prompts, then learns: the amount of work is the same.
Left out on our side: the checks of laws. The losses are of different samples; that they agree on the same ones is
tests/parity/test_grpo.py.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import child, need_trl, prepare
from benchmarks.settings import parser, settings_of

NAMES = {"a": "A  GRPOTrainer", "b": "B  the same, tuned", "ours": "ours"}
PARTS = {"play": "playing", "score": "scoring, both players", "learn": "learning"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it in fresh processes, in turn, and print what was found."""
    made = parser(str(__doc__))
    made.add_argument("--samples", type=int, default=8, help="answers per prompt (default 8)")
    made.set_defaults(pairs=8, step=4, lengths=(121, 1, 64), lr=1e-5)
    options = made.parse_args(arguments)
    settings = settings_of("reinforce", options)
    if options.pairs % options.step or options.spread:
        made.error("--pairs must be a multiple of --step, and lengths equal, or the sides would not do the same work")
    need_trl()
    with tempfile.TemporaryDirectory(prefix="sparring-bench-") as name:
        device = prepare(Path(name), settings)["device"]
        rounds = [{who: child(Path(name), who, settings) for who in NAMES} for _ in range(options.repeats)]
    found = summary(rounds, "wall" if device == "cuda" else "cpu") | {
        "settings": {**asdict(settings), "device": device}
    }
    print("\n".join(table(found)))
    if options.json:
        print(json.dumps(found))


def summary(rounds: list[dict[str, Any]], clock: str) -> dict[str, Any]:
    """Medians, and ratios within rounds: the rival's time over ours, our memory over the rival's."""
    tokens = {who: found["tokens"] for who, found in rounds[0].items()}
    if len(set(tokens.values())) > 1:
        raise SystemExit(f"not the same work: tokens {tokens}")
    made: dict[str, Any] = {"clock": clock, "tokens": tokens["ours"], "losses": rounds[0]["ours"]["losses"]}
    for who in ("a", "b"):
        times = [turn[who][clock] / turn["ours"][clock] for turn in rounds]
        made[f"vs_{who}"], made[f"vs_{who}_range"] = statistics.median(times), [min(times), max(times)]
        made[f"memory_vs_{who}"] = statistics.median(
            turn["ours"]["peak"] / max(1, turn[who]["peak"]) for turn in rounds
        )
    keys = ("cpu", "wall", "peak")
    made["medians"] = {
        who: {key: statistics.median(turn[who][key] for turn in rounds) for key in keys} for who in NAMES
    }
    made["parts"] = {
        name: {key: statistics.median(turn["ours"]["parts"][name][key] for turn in rounds) for key in keys}
        for name in PARTS
    }
    return made


def table(found: dict[str, Any]) -> list[str]:
    """The lines that the benchmark prints."""
    s = found["settings"]
    prompt, _, answer = s["lengths"]
    lines = [
        f"reinforce: {s['model']} {s['dtype']} on {s['device']}, {s['threads']} threads, {s['pairs']} prompts of "
        f"{prompt} tokens, {s['samples']} answers of {answer} to each, {s['step']} prompts per update",
        f"{'':26}{'CPU s':>9}{'wall s':>9}{'memory over weights':>21}",
    ]
    costs = {NAMES[who]: cost for who, cost in found["medians"].items()}
    costs |= {f"   {PARTS[name]}": cost for name, cost in found["parts"].items()}
    for label, cost in costs.items():
        lines.append(f"{label:26}{cost['cpu']:>9.2f}{cost['wall']:>9.2f}{cost['peak'] / 2**20:>17.0f} MiB")
    for who in ("a", "b"):
        low, high = found[f"vs_{who}_range"]
        lines.append(
            f"ours against {who.upper()}: {found[f'vs_{who}']:.2f} times as fast in {found['clock']} seconds "
            f"({low:.2f} to {high:.2f}), {found[f'memory_vs_{who}']:.2f} of its memory over the weights"
        )
    return lines


if __name__ == "__main__":
    main()
