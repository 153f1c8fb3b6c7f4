"""The study's page: content, safety, and every way a study can be unfinished."""

from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import fakes

from sparring.errors import RunError
from sparring.report import study_tables as tables
from sparring.report.study import _arm, per_seed, read_study
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


@pytest.fixture(scope="module")
def page(whole: Path) -> str:
    return (whole / "report.html").read_text(encoding="utf-8")


def page_of(folder: Path) -> str:
    return write_study(folder).read_text(encoding="utf-8")


# ---------------------------------------------------------------- content


def test_sections_come_in_order(page: str) -> None:
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "The arms", "Warnings", "Budget", "All metrics", "Learning rates", "Runs", "How SPIN + anchor went",
        "Side by side", "How to make it again", "Glossary",
    ]  # fmt: skip
    assert page.index("no difference seen: −0.0012") < page.index("<h2>")
    assert "unfinished" not in page.split("<h2>")[0].split("<main>")[1]
    plots = re.findall(r'id="plot-(\w+)"', page)
    assert plots == ["forest", "values", "nll", "logprobs", "loss", "answers", "seconds"]


def test_the_forest_plot_says_what_it_draws(page: str) -> None:
    drawn = page.split('id="plot-forest"')[1].split("</figure>")[0]
    assert "SPIN + anchor −0.0012 [−0.0033, +0.0009]; Stale opponent θ₀" in drawn
    assert "Continued SFT +0" not in drawn
    placed = [drawn.index(f">{label}</text>") for label in ("SFT", "(reference)", "SPIN + anchor", "Shuffled labels")]
    assert placed == sorted(placed)
    assert drawn.index("← better") < drawn.index("worse →")
    assert "vermilion" in drawn


def test_higher_is_better_turns_the_sides(tmp_path: Path) -> None:
    drawn = page_of(make_study(tmp_path, study(primary="match"))).split('id="plot-forest"')[1].split("</figure>")[0]
    assert drawn.index("← worse") < drawn.index("better →")


def test_seeds_are_paired_with_the_references_own() -> None:
    arms = {name: _arm(arm(name)) for name in ("spin", "continued")}
    wanted = [
        mine["values"]["nll"] - theirs["values"]["nll"]
        for mine, theirs in zip(arm("spin")["runs"], arm("continued")["runs"], strict=True)
    ]
    assert per_seed(arms["spin"], arms["continued"], "nll") == wanted
    fewer = replace(arms["continued"], runs=arms["continued"].runs[1:])
    assert per_seed(arms["spin"], fewer, "nll") == wanted[1:]


def test_comparisons_put_the_reference_first(whole: Path) -> None:
    header, rows = tables.comparisons(read_study(whole))
    assert header[2] == "Δ NLL [95 %]"
    assert [row[1] for row in rows] == ["Continued SFT"] * 6 + ["SFT"] * 6
    assert rows[2][:5] == ["SPIN", "Continued SFT", "+0.0230 [+0.0209, +0.0251]", "< 0.001", "0.003"]
    assert "no difference seen; at most 0.0033" in rows[3][5]


def test_all_four_budgets_and_which_was_matched(whole: Path, page: str) -> None:
    heads, lines = tables.budgets(read_study(whole))
    assert [head.heading for head in heads] == ["steps", "tokens", "FLOPs ★ matched", "time"]
    spent = [str(cell) for cell in lines[4].cells]
    assert spent == ["57 (91)", "81 920 (131 072)", "2.50 T (4.00 T)", "21.4 s (34.2 s)"]
    assert [line.label for line in lines if line.best] == ["SPIN + anchor"]
    assert "FLOPs were made equal to the target" in page


def test_metrics_are_marked_only_where_the_interval_excludes_0(whole: Path) -> None:
    _, lines = tables.measures(read_study(whole), "continued")
    cells = {line.player: [cell.figure for cell in line.cells] for line in lines}
    assert [cell.partition(" ")[2] for cell in cells["nll"]] == ["", "", "worse", "", "", "worse"]
    assert cells["match"][2] == "+0.1150 better"
    assert cells["length"][2] == "+2.5530"  # neither way is better
    assert [line.player for line in lines if line.best] == ["nll"]


def test_grids_mark_what_was_chosen(whole: Path, page: str) -> None:
    _, rows = tables.grids(read_study(whole))
    assert rows[4] == [
        "SPIN + anchor", "selfplay.lr", "0.0002", "0.0002: 0.1068 ★ · 0.00063: 0.1078 · 0.002: 0.1268",
    ]  # fmt: skip
    assert rows[4][3] in page


def test_warnings_of_equal_runs_are_said_once(whole: Path, page: str) -> None:
    assert tables.warned(read_study(whole)) == [
        "3 seeds are few.",
        "SPIN, seeds 0, 1, 2: likelihood displacement: both log-probs had fallen",
    ]
    assert "were rolled back: SPIN 3 of 3." in page


def test_csv_holds_unrounded_numbers(whole: Path) -> None:
    def read(name: str) -> list[dict[str, str]]:
        with (whole / "tables" / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    gaps = {(row["arm"], row["against"], row["metric"]): row for row in read("differences.csv")}
    assert float(gaps["spin", "continued", "exact_kl"]["mean"]) == ARMS["spin"][2] * SCALES["exact_kl"]
    assert len(read("arms.csv")) == len(ARMS) * len(METRICS)
    assert float(read("budgets.csv")[0]["whole_steps"]) == 1.6 * 57.0
    assert read("runs.csv")[9]["warnings"].startswith("likelihood displacement")
    assert "values_nll" in read("runs.csv")[0]


def test_markdown_has_the_same_numbers(whole: Path) -> None:
    text = (whole / "report.md").read_text(encoding="utf-8")
    assert "−0.0012 \\[−0.0033, +0.0009\\]" in text
    assert "FLOPs ★ matched" in text
    assert "```yaml\nname: laboratory" in text


def test_only_runs_that_are_there_are_linked(page: str) -> None:
    seen = fakes.Page(page)
    links = [link for link in seen.links if not link.startswith("#")]
    assert links == ["arms/spin-anchor/lr-0.0002/seed-0/report.html"]


def test_two_writes_give_the_same_bytes(whole: Path) -> None:
    names = ["report.html", "report.md", *(f"tables/{name}" for name in tables.sheets(read_study(whole)))]
    first = [(whole / name).read_bytes() for name in names]
    write_study(whole)
    assert [(whole / name).read_bytes() for name in names] == first
    assert not list(whole.rglob("*.tmp"))


# ---------------------------------------------------------------- safety


@pytest.mark.parametrize("folder", ["javascript:alert(1)", "/etc", "../elsewhere", "a/../../elsewhere", HOSTILE, ""])
def test_folders_that_are_not_the_studys_are_not_opened(tmp_path: Path, folder: str) -> None:
    outside = fakes.make_run(tmp_path / "elsewhere", fakes.events(), fakes.lock(), fakes.best())
    (outside / "report.html").write_text("", encoding="utf-8")
    facts = study()
    for row in facts["arms"]:
        for run in row["runs"]:
            run["folder"] = folder
    page = page_of(make_study(tmp_path / "study", facts))
    assert [link for link in fakes.Page(page).links if not link.startswith("#")] == []
    assert 'id="plot-loss"' not in page


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(held) for key, held in value.items()}
        if isinstance(value, list):
            return [spoil(held) for held in value]
        return f"{value} {HOSTILE}" if isinstance(value, str) else value

    facts = study()
    kept = {key: facts[key] for key in ("primary", "match", "target", "reference")}
    names = [row["name"] for row in facts["arms"]]
    facts = spoil(facts) | kept
    for row, name in zip(facts["arms"], names, strict=True):
        row["name"] = name
    folder = make_study(tmp_path / "study", facts)
    seen = fakes.Page(page_of(folder))
    assert seen.only_ours_runs()
    assert [kind for kind, _ in seen.scripts] == ["application/json", "code"]
    assert "img" not in seen.tags
    assert not seen.handlers
    assert len(seen.ids) == len(set(seen.ids))


@fakes.needs_chromium
@pytest.mark.parametrize(
    ("fragment", "count"),
    [
        ("", "1–20 of 150 found among 150 duels"),
        ("#match=spin&q=149%2B149", "1–1 of 1 found among 150 duels"),
        ("#match=all&q=spin+says+7+", "1–1 of 1 found among 300 duels"),
    ],
)
def test_duels_of_a_study_in_a_browser(whole: Path, tmp_path: Path, fragment: str, count: str) -> None:
    seen, console = fakes.opened(whole / "report.html", tmp_path, fragment)
    assert f'role="status">{count}</span>' in seen
    assert console == []


# ---------------------------------------------------------------- unfinished and odd studies


@pytest.mark.parametrize("missing", sorted(study()))
def test_any_key_may_be_missing(tmp_path: Path, missing: str) -> None:
    facts = study()
    del facts[missing]
    assert "<h2>Glossary</h2>" in page_of(make_study(tmp_path, facts))


@pytest.mark.parametrize("missing", sorted(set(arm("spin")) - {"name"}))
def test_any_key_of_an_arm_may_be_missing_or_null(tmp_path: Path, missing: str) -> None:
    facts = study()
    for row in facts["arms"]:
        del row[missing]
    assert "<h2>Glossary</h2>" in page_of(make_study(tmp_path, facts))
    for row in facts["arms"]:
        row[missing] = None
    assert "<h2>Glossary</h2>" in page_of(make_study(tmp_path, facts))


@pytest.mark.parametrize("odd", [None, 7, "text", [], [None, 3, "x"], {}, {"nll": 3}])
def test_odd_values_are_left_out(tmp_path: Path, odd: Any) -> None:
    small = {"arms": [arm("continued"), arm("spin-anchor")], "duels": [duel(0)]}
    for key in study():
        page = page_of(make_study(tmp_path, study(**small | {key: odd})))
        assert "<h2>Glossary</h2>" in page, key


def test_an_empty_study_says_so(tmp_path: Path) -> None:
    page = page_of(make_study(tmp_path / "new", {}))
    assert "This study is unfinished: 0 of 0 arms have been measured." in page
    assert "<svg" not in page
    assert "script" not in fakes.Page(page).tags


def test_an_unfinished_study_says_how_far_it_got(tmp_path: Path) -> None:
    arms = [arm(name) for name in ARMS]
    for row in arms[3:]:
        row |= {"values": {}, "last": {}, "against": {}, "grid": None}
    page = page_of(make_study(tmp_path, study(finished=False, headline="", arms=arms)))
    assert "This study is unfinished: 3 of 7 arms have been measured." in page
    assert 'id="plot-forest"' in page


def test_intervals_may_be_missing(tmp_path: Path) -> None:
    facts = study()
    for row in facts["arms"]:
        for found in (*row["values"].values(), *row["against"].get("continued", {}).values()):
            found |= {"low": None, "high": float("nan"), "p": None, "holm": None}
    page = page_of(make_study(tmp_path, facts))
    assert ">nan<" not in page.lower()
    assert 'id="plot-forest"' in page


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_folder_without_a_study_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match="sparring compare"):
        write_study(tmp_path)


def test_the_page_loads_no_torch() -> None:
    code = "import sys, sparring.report.study_page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
