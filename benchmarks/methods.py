"""What each method costs: a random Llama in memory once, every method on it in turn, in one process.

    .venv/bin/python -m benchmarks.methods [--layers 8] [--width 512] [--pairs 8] [--repeat 3] [--threads 2]

Learn: one step on pairs (prompt 64, answers 64 tokens), forward and backward. Play: 32 tokens to each of 32
prompts of 64.
CPU seconds, the best of `repeat` rounds in which the methods take turns, and how many times LoRA's that is. Peak: what
the backward pass keeps of each token. Disk: a player's weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.quantised import make
from sparring.config import GenerationConfig, ModelConfig
from sparring.data.collate import Row
from sparring.generation.local import LocalGenerator
from sparring.generation.sampling import stream_keys
from sparring.methods import METHODS
from sparring.models.base import load_base, load_renderer
from sparring.models.memory import token_bytes
from sparring.models.players import Player, Ring
from sparring.models.scoring import answer_logprobs

PROMPT, ANSWER, SAID, PLAYED = 64, 64, 32, 32


def rows_of(pairs: int, seed: int = 0) -> list[Row]:
    """Two answers to each of some prompts."""
    draw = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        drawn: list[int] = torch.randint(3, 1000, (count,), generator=draw).tolist()
        return drawn

    prompts = [ids(PROMPT) for _ in range(pairs)]
    return [(prompt, ids(ANSWER)) for prompt in prompts for _ in range(2)]


class Contender:
    """One method on the base, with a player that has been saved."""

    def __init__(self, name: str, base: Any, place: Path) -> None:
        self.ring, self.place = Ring(base, METHODS[name].settings(), "base"), place / name
        self.place.mkdir()
        start = Player.untrained(base)
        self.ring.challenge(start, seed=0)
        self.size = self.ring.size
        with torch.no_grad():
            for parameter in self.ring.trainable().values():
                parameter.add_(1e-3 * torch.randn_like(parameter))
        self.player = self.ring.save(self.place, start, place, name)
        self.disk = sum(file.stat().st_size for file in self.place.glob("*.safetensors"))
        self.kept = 0

    def learn(self, rows: list[Row]) -> float:
        """CPU seconds of a step without its update."""
        model = self.ring.challenge(self.player, seed=0).train()
        self.kept = token_bytes(model, self.ring.base, rows)
        begun = time.process_time()
        torch.autograd.backward(-answer_logprobs(model, self.ring.base, rows).logprob_A.sum())
        spent = time.process_time() - begun
        model.zero_grad()
        return spent

    def play(self, prompts: list[list[int]]) -> float:
        """CPU seconds of decoding, merged where the method can."""
        model = self.ring.seat(self.player, merged=True)
        keys = stream_keys(0, 0, list(range(len(prompts))), [0] * len(prompts))
        generator = LocalGenerator(model, self.ring.base, GenerationConfig())
        begun = time.process_time()
        generator(prompts, keys, SAID)
        return time.process_time() - begun


def measure(names: list[str], base: Any, place: Path, pairs: int, repeat: int) -> dict[str, dict[str, float]]:
    """Every method's costs, taking turns."""
    rows = rows_of(pairs)
    prompts = [prompt for prompt, _ in rows_of(PLAYED, seed=1)[::2]]
    found: dict[str, dict[str, float]] = {}
    contenders = {}
    for name in names:
        contenders[name] = Contender(name, base, place)
        contenders[name].ring.seat(Player.untrained(base))
    first = next(iter(contenders.values()))
    first.learn(rows)  # what only the first calls cost is not timed
    first.play(prompts)
    for _ in range(repeat):
        for name, contender in contenders.items():
            learn, play = contender.learn(rows), contender.play(prompts)
            contender.ring.seat(Player.untrained(base))
            before = found.get(name, {"learn": learn, "play": play})
            found[name] = {
                "learn": min(learn, before["learn"]),
                "play": min(play, before["play"]),
                "kept": contender.kept,
                "parameters": contender.size,
                "disk": contender.disk,
            }
    return found


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """As Markdown."""
    first = next(iter(found.values()))
    lines = ["| method | learn s | play s | kept KiB / token | parameters | disk KiB |", "|---|---|---|---|---|---|"]
    for name, row in found.items():
        timed = [f"{row[key]:.2f} ({row[key] / first[key]:.2f})" for key in ("learn", "play")]
        cells = [*timed, f"{row['kept'] / 1024:.0f}", f"{row['parameters']:,.0f}", f"{row['disk'] / 1024:,.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure all methods and print the table; returns it."""
    parser = argparse.ArgumentParser(prog="benchmarks.methods")
    sizes = {"layers": 8, "width": 512, "vocabulary": 8000, "pairs": 8, "repeat": 3, "threads": 2}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make(place / "base", asked.layers, asked.width, asked.vocabulary)
        config = ModelConfig(base=str(place / "base"), dtype="fp32", device="cpu")
        base = load_base(place / "base", config, load_renderer(place / "base", config))
        (place / "players").mkdir()
        found = measure(asked.methods.split(","), base, place / "players", asked.pairs, asked.repeat)
    print(json.dumps(found) if asked.json else "\n".join(table(found)))
    return found


if __name__ == "__main__":
    main()
