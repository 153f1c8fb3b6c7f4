"""The lm-evaluation-harness on a base with its adapter: needs lm-eval, which is an extra; data are local."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helpers import base_of, make_player, plain_logprobs, ring_of
from tests.unit.test_cli import call, refused

from sparring.errors import InputError
from sparring.evaluation.harness import SPIN, bench, rows_of, save_results, tasks_of
from sparring.models.players import Player

SHARED = Path(os.environ.get("SPARRING_SHARED", Path(__file__).parents[3] / "shared"))
MCQ = SHARED / "data" / "mcq" / "ARC-Easy_test.json"
BBH = SHARED / "data" / "bbh" / "sports_understanding.json"
installed = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not installed, reason="lm-eval is not installed")
needs_data = pytest.mark.skipif(not MCQ.exists(), reason="the real data are not here; set SPARRING_SHARED")


def test_lists_of_tasks() -> None:
    assert tasks_of("spin", None) == SPIN
    assert tasks_of("spin", 3) == SPIN  # the paper's own shots
    assert tasks_of("piqa, arc_easy", 3) == {"piqa": 3, "arc_easy": 3}
    assert tasks_of("spin,piqa", None)["piqa"] is None
    assert SPIN["arc_challenge"] == 25
    with pytest.raises(InputError, match="no task is named"):
        tasks_of(" , ", None)


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    first = save_results(tmp_path / "bench", "0", {"a": 1})
    second = save_results(tmp_path / "bench", "0", {"a": 2})
    assert [path.name for path in (first, second)] == ["0-1.json", "0-2.json"]
    assert json.loads(first.read_text()) == {"a": 1}


def test_results_as_a_table() -> None:
    metrics = {"acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict-match": 0.25}
    _, rows = rows_of({"t": {"metrics": metrics, "n": 20, "shots": 5}})
    assert rows == [
        ["t", "acc", "0.5000", "± 0.1960", "20", "5"],
        ["t", "exact_match (strict-match)", "0.2500", "", "20", "5"],
    ]


@pytest.mark.skipif(installed, reason="lm-eval is installed")
def test_not_installed_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "bench", "last", "--tasks", "spin")
    assert "pip install lm-eval" in said


# ---------------------------------------------------------------- with the harness


def task_file(folder: Path, count: int = 6) -> list[dict[str, Any]]:
    """A task on the first questions of ARC-easy, in local files; returns its rows."""
    rows = [row for row in json.loads(MCQ.read_text()) if row["answer"] in ("answer1", "answer2", "answer3")][:count]
    rows = [{"question": row["instruction"][:60], "answer": row["answer"]} for row in rows]
    (folder / "rows.json").write_text(json.dumps(rows))
    task = {
        "task": "questions_of_ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(folder / "rows.json")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}} The answer is",
        "doc_to_target": "answer",
        "doc_to_choice": ["answer1", "answer2", "answer3"],
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "questions.yaml").write_text(yaml.safe_dump(task))
    return rows


@needs_harness
@needs_data
def test_a_task_of_ones_own_on_a_player_that_is_not_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    base = base_of("llama")
    ring = ring_of(base)
    player = make_player(ring, Player.untrained(base), tmp_path, "player")
    rows = task_file(tmp_path)
    likelihood = {**yaml.safe_load((tmp_path / "questions.yaml").read_text()), "task": "likelihood_of_ours"}
    likelihood |= {
        "output_type": "loglikelihood",
        "doc_to_target": " {{answer}}",
        "metric_list": [{"metric": "perplexity"}],
    }
    del likelihood["doc_to_choice"]
    (tmp_path / "likelihood.yaml").write_text(yaml.safe_dump(likelihood))
    tokenizer = base.renderer.tokenizer
    found = []
    for seated in (Player.untrained(base), player):
        model = ring.seat(seated)
        right, total = 0, 0.0
        for row in rows:
            asked = tokenizer(f"{row['question']} The answer is").input_ids
            values = {}
            for choice in ("answer1", "answer2", "answer3"):
                ids = tokenizer(f"{row['question']} The answer is {choice}").input_ids
                values[choice] = float(plain_logprobs(model, (asked, ids[len(asked) :])).sum())
            right += max(values, key=lambda choice: values[choice]) == row["answer"]
            total += values[row["answer"]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tasks = {"questions_of_ours": None, "likelihood_of_ours": None}
            results = bench(model, tokenizer, tasks, include_path=tmp_path, batch_size=4, context=base.context)
        assert results["questions_of_ours"]["n"] == len(rows)
        assert results["questions_of_ours"]["metrics"]["acc,none"] == pytest.approx(right / len(rows))
        found.append(math.log(results["likelihood_of_ours"]["metrics"]["perplexity,none"]))
        assert found[-1] == pytest.approx(-total / len(rows), rel=1e-4)
    assert abs(found[0] - found[1]) > 0.1  # the adapter counts


@needs_harness
@needs_data
def test_generation_on_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    examples = json.loads(BBH.read_text())["examples"][:3]
    rows = [{"input": row["input"][:50], "target": row["target"]} for row in examples]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    task = {
        "task": "sports_of_ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "rows.json")},
        "test_split": "train",
        "output_type": "generate_until",
        "doc_to_text": "{{input}}",
        "doc_to_target": "target",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "sports.yaml").write_text(yaml.safe_dump(task))
    base = base_of("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = bench(
            base.model, base.renderer.tokenizer, {"sports_of_ours": 0}, include_path=tmp_path, limit=2,
            context=base.context,
        )  # fmt: skip
    assert results["sports_of_ours"]["n"] == 2
    assert results["sports_of_ours"]["metrics"]["exact_match,none"] == 0


@needs_harness
def test_an_unknown_task_names_the_nearest(tmp_path: Path) -> None:
    base = base_of("llama")
    with pytest.raises(InputError, match='task "arc_esy" is not known to the harness; did you mean "arc_easy"'):
        bench(base.model, base.renderer.tokenizer, {"arc_esy": None})


@needs_harness
@needs_data
def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task_file(tmp_path)
    settings = ['data.split="[:20]"', "data.eval_limit=4", "sft.epochs=0", "selfplay.iterations=0", "threads=1"]
    assert call("run", *settings, f"runs={tmp_path}", "name=r") == 0
    capsys.readouterr()
    words = ["bench", "r", "--runs", str(tmp_path), "--tasks", "questions_of_ours", "--limit", "2", "--json"]
    for number in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert call(*words, "--include-path", str(tmp_path)) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert Path(said["file"]) == tmp_path / "r" / "bench" / f"sft-{number}.json"
        assert said["results"]["questions_of_ours"]["n"] == 2
