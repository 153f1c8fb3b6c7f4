"""The page of a comparison along an axis: the table of costs, the plot, and what may be missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tests import fakes

from sparring.report import study_tables as tables
from sparring.report.study import read_study
from sparring.report.study_costs import cost_rows, draw_costs
from sparring.report.study_page import write_study

METHODS = {"lora": (40960, 0.30), "dora": (42000, 0.28), "prompt": (1024, 0.41)}


def arm(name: str, alone: bool) -> dict[str, Any]:
    size, mean = METHODS[name]
    mean += 0.02 * alone
    gap = {"mean": -0.02, "low": -0.03, "high": -0.01, "p": 0.001, "holm": 0.004, "words": "in words"}
    others = ["lora-sft"] * (name != "lora") if alone else ["lora"] * (name != "lora") + [f"{name}-sft"]
    return {
        "name": f"{name}-sft" if alone else name,
        "label": f"{name} {'SFT' if alone else 'self-play'}",
        "what": "",
        "settings": {"method.name": name},
        "grid": {"key": "sft.lr" if alone else "selfplay.lr", "values": [1e-4, 3e-4], "chosen": 3e-4},
        "values": {
            "nll": {"mean": mean, "low": mean - 0.01, "high": mean + 0.01},
            "exact_kl": {"mean": 2 * mean, "low": mean, "high": 3 * mean},
        },
        "last": {},
        "against": {other: {"nll": gap} for other in others},
        "budget": {"steps": 0.0 if alone else 20.0},
        "whole": {"steps": 40.0},
        "costs": {
            "trainable": size, "disk_bytes": 4 * size, "sft_seconds": 3.25, "play_seconds": 0.0 if alone else 2.0,
            "score_seconds": 0.0 if alone else 1.0, "learn_seconds": 0.0 if alone else 4.0,
            "memory_bytes": 700 * 2**20, "memory_of": "process",
            "play_tokens_per_second": None if alone else 4321.0, "learn_tokens_per_second": 1234.0,
        },
        "runs": [],
    }  # fmt: skip


def study(**changes: Any) -> dict[str, Any]:
    return {
        "name": "methods", "finished": True, "primary": "nll", "match": "", "seeds": [0, 1, 2],
        "target": "dora", "reference": "lora", "headline": "No difference seen.", "test_prompts": 100,
        "axis": {"key": "method", "pairs": [[f"{name}-sft", name] for name in METHODS]},
        "metrics": {
            "nll": {"label": "NLL", "unit": "nats per token", "better": "lower"},
            "exact_kl": {"label": "exact KL", "unit": "nats per answer", "better": "lower"},
        },
        "arms": [arm(name, alone) for name in METHODS for alone in (True, False)],
    } | changes  # fmt: skip


def write(folder: Path, facts: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(facts), encoding="utf-8")
    return write_study(folder).read_text(encoding="utf-8")


def test_a_row_per_arm_with_quality_size_time_memory_and_speed(tmp_path: Path) -> None:
    page = write(tmp_path, study())
    header, rows = cost_rows(read_study(tmp_path))
    assert header == [
        "arm", "NLL [95 %]", "exact KL", "parameters", "disk", "SFT s", "play s", "score s", "learn s", "memory",
        "play tok/s", "learn tok/s", "lr",
    ]  # fmt: skip
    assert [row[0] for row in rows] == [f"{name} {kind}" for name in METHODS for kind in ("SFT", "self-play")]
    assert rows[1][1:] == [
        "0.3000 [0.2900, 0.3100]", "0.6000", "40 960", "160.0 KiB", "3.2", "2.0", "1.0", "4.0", "700.0 MiB", "4 321",
        "1 234", "0.0003",
    ]  # fmt: skip
    assert rows[0][5:9] == ["3.2", "–", "–", "–"]
    for text in (page, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "Quality and costs" in text
        assert "resident peak" in text
        assert "No budget was made equal" in text


def test_costs_as_csv(tmp_path: Path) -> None:
    write(tmp_path, study())
    with (tmp_path / "tables" / "costs.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert float(rows["dora"]["nll_mean"]) == 0.28
    assert float(rows["dora"]["trainable"]) == 42000
    assert rows["dora-sft"]["play_tokens_per_second"] == ""


def test_the_plot_joins_sft_and_self_play_from_small_to_large(tmp_path: Path) -> None:
    page = write(tmp_path, study())
    (plot,) = draw_costs(read_study(tmp_path))
    said = plot.svg.split("<desc")[1].split("</desc>")[0]
    assert "lora: 40 960 parameters, SFT 0.3200, self-play 0.3000" in said
    assert said.index("prompt:") < said.index("lora:") < said.index("dora:")
    assert page.index('id="plot-parameters"') < page.index('id="plot-forest"')
    assert "mathdefault" not in plot.svg


def test_an_arm_is_shown_only_beside_those_it_is_compared_with(tmp_path: Path) -> None:
    page = write(tmp_path, study())
    forest = page.split('id="plot-forest"')[1].split("</figure>")[0]
    assert ">prompt self-play</text>" in forest or ">prompt self-</text>" in forest
    assert "SFT" not in forest.split("<desc")[1].split("</desc>")[0]
    heads, _ = tables.measures(read_study(tmp_path), "lora")
    assert [head.heading for head in heads] == ["dora self-play", "prompt self-play"]


@pytest.mark.parametrize("odd", [None, {}, [], "text", {"pairs": [["lora"], 3, ["x", "y"], None]}])
def test_an_odd_axis_is_none(tmp_path: Path, odd: Any) -> None:
    page = write(tmp_path, study(axis=odd))
    assert "Quality and costs" not in page
    assert "<h2>Glossary</h2>" in page


@pytest.mark.parametrize("odd", [None, {}, 3, {"trainable": "x", "memory_of": 7, "memory_bytes": None}])
def test_costs_may_be_missing(tmp_path: Path, odd: Any) -> None:
    facts = study()
    for row in facts["arms"]:
        row["costs"] = odd
    page = write(tmp_path, facts)
    assert "Quality and costs" in page
    assert 'id="plot-parameters"' not in page


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    facts = study()
    for row in facts["arms"]:
        row["label"] += fakes.HOSTILE
        row["costs"]["memory_of"] = fakes.HOSTILE
    seen = fakes.Page(write(tmp_path, facts))
    assert "img" not in seen.tags
    assert not seen.handlers
