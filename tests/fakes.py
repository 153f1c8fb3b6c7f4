"""A run folder made up for tests of its report, and what a browser would make of a page."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

HOSTILE = '<script>alert("x")</script> & </pre> $x_1$ | `` ``` ![i](http://evil.example/p.png)'
NLL = {"base": 1.9120, "sft": 1.2480, "0": 1.2305, "1": 1.2561}


class Page(HTMLParser):
    """What a browser would make of the page: its elements, ids, addresses and scripts (type, text)."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self.policy = ""
        self._inside: str | None = None
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        if tag == "script":
            self._inside = given.get("type") or "code"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "xlink:href"):
                self.links.append(value or "")
            elif name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.scripts.append((self._inside, data))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = None

    def only_ours_runs(self) -> bool:
        """Whether there is at most one script beside data, and it is the one that the policy allows."""
        ran = [source for kind, source in self.scripts if kind != "application/json"]
        digests = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in ran]
        allowed = re.findall(r"script-src ([^;]*)", self.policy)
        return len(ran) <= 1 and len(allowed) == 1 and all(allowed[0] == f"'sha256-{one}'" for one in digests)


# ---------------------------------------------------------------- a fake run folder


def lock(**changes: Any) -> dict[str, Any]:
    config = {
        "name": "demo",
        "seed": 7,
        "data": {"train": "laboratory"},
        "method": {"name": "lora", "r": 16},
        "sft": {"epochs": 1.0},
        "selfplay": {"iterations": 2, "loss": "logistic", "beta": [0.1, 0.3], "anchor": 0.2},
        "evaluation": {"select": "nll", "show": 3},
    }
    tree = {
        "name": "demo",
        "seed": 7,
        "config": config,
        "versions": {"sparring": "0.1.0", "python": "3.11.9", "torch": "2.13.0"},
        "hardware": {"cpu": "Imaginary 9000", "threads": 4, "device": "cpu"},
        "base": {"name": "laboratory", "parameters": 260032, "fingerprint": "b45e"},
        "data": {
            "description": "templated arithmetic",
            "train": 512,
            "eval": 40,
            "counts": {"dropped_too_long": 3},
            "fingerprint": "da7a",
        },
    }
    return tree | changes


def steps(phase: str, total: int) -> list[dict[str, Any]]:
    t = int(phase[0]) if phase[0].isdecimal() else -1
    rows = []
    for step in range(1, total + 1):
        share = (step - 1) / (total - 1)
        wave = 0.02 * math.sin(2.3 * step)
        row = {"event": "step", "phase": phase, "step": step, "steps": total, "nll": 1.9 - 0.6 * share + wave}
        row |= {"loss": row["nll"], "lr": 1e-5, "grad_norm": 1.0, "tokens": 4096, "seconds": 0.4}
        if t >= 0:
            shift = (3.0 - 5.0 * t) * share
            margin = 0.1 * (shift + 4.5 * share)
            row |= {"spin_loss": math.log1p(math.exp(-margin)) + wave / 4, "margin": margin + wave / 4}
            row |= {"accuracy": 0.5 + 0.3 * share, "real_shift": shift, "synthetic_shift": -4.5 * share}
            row |= {
                "real_logprob": -1.25 + wave + 0.02 * share,
                "synthetic_logprob": -1.3 - wave - 0.1 * share,
            }
        rows.append(row)
    return rows


def scores(player: str, laboratory: bool) -> dict[str, Any]:
    nll = NLL[player]
    row: dict[str, Any] = {"event": "scores", "player": player, "nll": nll, "nll_low": nll - 0.03}
    row |= {"nll_high": nll + 0.03, "label": {"base": "base", "sft": "θ_0 (SFT)"}.get(player)}
    if player.isdecimal():
        mean = nll - NLL["sft"]
        row["label"] = f"θ_{int(player) + 1}"
        row["nll_difference"] = {"against": "sft", "mean": mean, "low": mean - 0.006, "high": mean + 0.006}
        row |= {"accuracy": 0.71, "margin": 0.3}
    else:
        row |= {"nll_difference": None, "accuracy": None, "margin": None}
    row |= {"kl_start": {"base": 3.1, "sft": 0.0, "0": 0.42, "1": 1.37}[player], "n": 40}
    row |= {"end_rate": {"base": 0.41, "sft": 0.96, "0": 0.97, "1": 0.8}[player]}
    row |= {"length": {"base": 61.0, "sft": 33.1, "0": 34.2, "1": 48.9}[player]}
    row |= {"distinct_1": 0.31, "distinct_2": 0.72, "repetition": 0.04, "real_length": 34.0}
    row |= {"real_end_rate": 1.0, "real_distinct_1": 0.33, "real_distinct_2": 0.75, "real_repetition": 0.02}
    if laboratory:
        kl = {"base": 0.911, "sft": 0.248, "0": 0.202, "1": 0.36}[player]
        row["exact"] = {"kl": kl, "valid_mass": math.exp(-kl), "total_variation": 0.2}
    return row


def phase(name: str, seconds: float, **counts: Any) -> dict[str, Any]:
    return {"event": "phase", "phase": name, "seconds": seconds, "tokens": 81920, "flops": 2.5e12} | counts


def events(laboratory: bool = False) -> list[dict[str, Any]]:
    rows = [phase("data", 1.2), scores("base", laboratory), phase("base-scores", 4.0)]
    rows += [*steps("sft", 20), phase("sft", 21.0, stopped=None), scores("sft", laboratory)]
    rows += [phase("sft-scores", 4.1)]
    for t, stopped in ((0, None), (1, "held-out NLL rose by 0.021")):
        rows += [phase(f"{t}/played", 33.3, cut=2), phase(f"{t}/pairs", 8.5, identical=5)]
        rows += steps(f"{t}/player", 16)
        rows += [
            {"event": "check", "phase": f"{t}/player", "step": step, "heldout_nll": NLL["0"] + nudge}
            for step, nudge in ((4, 0.010), (8, 0.004), (12, 0.001))
        ]
        rows += [phase(f"{t}/player", 95.0, stopped=stopped)]
        rows += [scores(str(t), laboratory), phase(f"{t}/scores", 4.4)]
    rows.append({"event": "warning", "phase": "1/player", "text": f"odd row {HOSTILE}"})
    return rows


def answers(player: str) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"prompt {index} {HOSTILE}",
            "real": f"real {index}\nsecond line",
            "answer": f"{player} says {index} {HOSTILE}",
            "finish": "length" if index == 1 else "end",
            "margin": 0.5 * (index - 2) if player.isdecimal() else None,
        }
        for index in range(5)
    ]


def make_run(
    folder: Path,
    rows: list[dict[str, Any]],
    locked: dict[str, Any] | None = None,
    best: dict[str, Any] | None = None,
    answered: tuple[str, ...] = (),
) -> Path:
    """Write a run folder; `answered` names the players whose answers are there."""
    folder.mkdir(parents=True)
    if locked is not None:
        (folder / "run.lock.yaml").write_text(yaml.safe_dump(locked, sort_keys=False), encoding="utf-8")
    if best is not None:
        (folder / "best").mkdir(exist_ok=True)
        (folder / "best" / "best.json").write_text(json.dumps(best), encoding="utf-8")
    if rows:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    for player in answered:
        place = folder / (f"{player}/scores" if player.isdecimal() else f"{player}-scores")
        place.mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in answers(player))
        (place / "answers.jsonl").write_text(lines, encoding="utf-8")
    return folder


def best(player: str = "0", **changes: Any) -> dict[str, Any]:
    found = {"player": player, "label": f"θ_{player}", "metric": "nll", "value": NLL[player]}
    return found | {"why": "lowest held-out NLL", "rolled_back": True, "values": NLL} | changes


# ---------------------------------------------------------------- a page in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no chromium or chrome is installed to open the page in")


def opened(page: Path, tmp_path: Path, fragment: str = "") -> tuple[str, list[str]]:
    """(the document after its script ran, what went to the console)."""
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{page}{fragment}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
