"""The whole job on real data with a real small model. Both stay outside the project: SPARRING_SHARED names the folder
that holds them (by default `shared` beside the checkout); without it these tests are skipped."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from sparring import build_config, run_job

pytestmark = pytest.mark.usefixtures("undrawn")

SHARED = Path(os.environ.get("SPARRING_SHARED", Path(__file__).parents[3] / "shared"))
MODEL = SHARED / "models" / "stories260K"
SMALL = ["threads=1", "selfplay.iterations=1", "data.eval_limit=4", "data.eval_size=4", "generation.max_new_tokens=24"]
INPUTS = {
    "tinystories": ("tinystories/tinystories_10k.txt", ["data.split=[:16]", "data.too_long=truncate"], False),
    "ultrachat": (
        "ultrachat_slice/ultrachat.jsonl",
        ["data.split=[:24]", "data.turns=first", "data.too_long=truncate"],
        True,
    ),
    "oasst": (
        "oasst/oa_questions.jsonl",
        ["data.split=[:60]", "data.columns={prompt: input, completion: output}"],
        True,
    ),
    "gsm8k": ("gsm8k/train.jsonl", ["data.split=[:20]"], True),
}


@pytest.mark.skipif(not MODEL.exists(), reason="the real model and data are not here; set SPARRING_SHARED")
@pytest.mark.parametrize("name", sorted(INPUTS))
def test_real_data_through_the_whole_job(name: str, tmp_path: Path) -> None:
    file, settings, chat = INPUTS[name]
    paths = [f"model.base={MODEL}", f"data.train={SHARED / 'data' / file}", f"runs={tmp_path}", f"name={name}"]
    folder = run_job(build_config({}, [*paths, *settings, *SMALL, "data.max_length=400", "sft.lr=1e-3"]))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {line["player"]: line for line in lines if line["event"] == "scores"}
    assert set(scores) == {"base", "sft", "0"}
    assert scores["sft"]["nll"] < scores["base"]["nll"] + 0.5
    first = next(line for line in lines if line["event"] == "step" and line["phase"] == "0/player")
    assert first["spin_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert next(line for line in lines if line["event"] == "phase")["chat"] == chat
    assert "report.html" in {path.name for path in folder.iterdir()}
