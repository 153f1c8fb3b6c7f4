"""The study's page: content, safety, and every way a study can be unfinished."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests import fakes

from sparring.report.study_page import write_study

HOSTILE = fakes.HOSTILE
ARMS = {  # name: label, NLL, difference to continued fine-tuning
    "sft": ("SFT", 0.1092, 0.0012),
    "continued": ("Continued SFT", 0.1080, 0.0),
    "restarts": ("SFT, merged and restarted", 0.1075, -0.0005),
    "spin": ("SPIN", 0.1310, 0.0230),
    "spin-anchor": ("SPIN + anchor", 0.1068, -0.0012),
    "stale": ("Stale opponent θ_0", 0.1083, 0.0003),
    "shuffled": ("Shuffled labels", 0.1150, 0.0070),
}
METRICS = {
    "nll": {"label": "NLL", "unit": "nats per token", "better": "lower"},
    "exact_kl": {"label": "exact KL", "unit": "nats per answer", "better": "lower"},
    "match": {"label": "exact match, T = 1", "unit": "share", "better": "higher"},
    "length": {"label": "length", "unit": "tokens", "better": None},
}
SCALES = {"nll": 1.0, "exact_kl": 2.3, "match": 5.0, "length": 111.0}


def around(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def gap(mean: float, half: float, arm: str, other: str) -> dict[str, Any]:
    low = abs(mean) > half
    words = "better" if low and mean < 0 else "worse" if low else f"no difference seen; at most {abs(mean) + half:.4f}"
    words = f"{arm} against {other}: {words} with these 450 (3 seeds × 150 prompts)."
    return around(mean, half) | {"p": 0.0004 if low else 0.31, "holm": 0.0028 if low else 0.93, "words": words}


def arm(name: str) -> dict[str, Any]:
    label, nll, gained = ARMS[name]
    noise = random.Random(name)
    budget = {"steps": 57.0, "tokens": 81_920.0, "flops": 2.5e12, "seconds": 21.4}
    seeds = [0, 1, 2]
    return {
        "name": name,
        "label": label,
        "what": f"What {label} does with the budget, in one sentence.",
        "settings": {"selfplay.anchor": 0.2 if name == "spin-anchor" else 0.0, "selfplay.negatives": "opponent"},
        "grid": {
            "key": "selfplay.lr",
            "values": [2e-4, 6.3e-4, 2e-3],
            "validation": [nll, nll + 0.001, nll + 0.02],
            "chosen": 2e-4,
        },
        "values": {key: around(nll * scale, 0.006 * scale) for key, scale in SCALES.items()},
        "last": {key: around(nll * scale * 1.01, 0.006 * scale) for key, scale in SCALES.items()},
        "against": {
            other: {
                key: gap((gained - ARMS[other][2]) * scale, 0.0021 * scale, label, ARMS[other][0])
                for key, scale in SCALES.items()
            }
            for other in ("continued", "sft")
            if other != name
        },
        "budget": budget,
        "whole": {key: 1.6 * value for key, value in budget.items()},
        "runs": [
            {
                "seed": seed,
                "folder": f"arms/{name}/lr-0.0002/seed-{seed}",
                "player": "0",
                "label": "θ_1",
                "rolled_back": name == "spin",
                "values": {"nll": 0.108 + gained + noise.gauss(0, 0.002 * (name != "continued"))},
                "budget": budget,
                "warnings": ["likelihood displacement: both log-probs had fallen"] if name == "spin" else [],
            }
            for seed in seeds
        ],
    }


def study(**changes: Any) -> dict[str, Any]:
    headline = (
        "SPIN + anchor has the lowest NLL, 0.1068 nats per token; against Continued SFT no difference seen: "
        "−0.0012 [−0.0033, +0.0009] over 3 seeds × 150 prompts, at most 0.0033."
    )
    facts: dict[str, Any] = {
        "name": "laboratory", "finished": True, "primary": "nll", "match": "flops", "seeds": [0, 1, 2],
        "target": "spin-anchor", "reference": "continued", "smallest": 0.01, "test_prompts": 150,
        "headline": headline,
        "notes": ["The tests hold for this base and these data."], "warnings": ["3 seeds are few."],
        "family": ["spin-anchor vs continued", "spin vs continued"],
        "command": "sparring compare", "config": {"name": "laboratory", "compare": {"seeds": [0, 1, 2]}},
        "versions": {"sparring": "0.1.0", "torch": "2.13.0"}, "hardware": {"cpu": "Imaginary 9000"},
        "metrics": METRICS, "arms": [arm(name) for name in ARMS], "duels": [duel(index) for index in range(150)],
    }  # fmt: skip
    return facts | changes


def duel(index: int) -> dict[str, Any]:
    noise = random.Random(index)
    said = {
        name: {"answer": f"{name} says {index} {HOSTILE}", "nll": noise.choice([1.2, 1.3, 1.4]), "tokens": 12}
        for name in ("spin", "continued", "spin-anchor")
    }
    return {"prompt": f"{index}+{index}= {HOSTILE}", "real": f"real {index}", "arms": said}


def make_study(folder: Path, facts: dict[str, Any], ran: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(facts), encoding="utf-8")
    if ran:
        place = folder / "arms/spin-anchor/lr-0.0002/seed-0"
        place.parent.mkdir(parents=True)
        fakes.make_run(place, fakes.events(), fakes.lock(), fakes.best())
        (place / "report.html").write_text("the run's own", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with its report written; tests read it and change nothing."""
    folder = make_study(tmp_path_factory.mktemp("study") / "laboratory", study(), ran=True)
    write_study(folder)
    return folder
