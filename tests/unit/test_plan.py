"""`sparring check` and `--dry-run`: what each verb's plan says, in its words, and what it refuses as the verb does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparring.cli import main

Said = Callable[..., str]
KEYS = {
    "verb", "run", "parameters", "counts", "tokens", "estimate", "config"
}  # fmt: skip


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """call(*words): what the command says on standard output, or on standard error if it is refused."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sparring", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        if not end.value.code:
            return said.out
        assert end.value.code == 2
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        return said.err

    return run


def facts(call: Said, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(*words, "--json", "threads=1"))
    return found


def test_the_verb_dpo(call: Said, tmp_path: Path) -> None:
    said = call("dpo", "--dry-run", "threads=1")
    assert "pairs     2400 of 800 prompts to learn from, 300 held out" in said
    assert "reference: θ_0, the base fine-tuned on the chosen answers" in said
    assert "on 1726 chosen answers, each once" in said
    assert "75 steps of 32 pairs, sigmoid loss of log-probs by sum, beta 0.3, lr 0.001" in said
    assert "nobody plays" in said
    assert "<s>0+9+9=⟦+0+9=9;9+9=8</s>⟧" in said
    assert "<s>0+9+9=⟦−0+9=5;9+9=8</s>⟧" in said
    assert list(tmp_path.iterdir()) == []


def test_the_verb_reinforce(call: Said) -> None:
    said = call("reinforce", "--dry-run", "threads=1", "reinforce.prompts=40", "reinforce.samples=4")
    assert "scorer    validity, 960 answers to be scored" in said
    assert "θ_0 answers 40 prompts 4×" in said
    assert "grpo on at most 40 groups of 4, 3 steps of 16 groups, lr 0.001, KL to θ_0 × 0.2 → θ_1" in said
    assert "3. iterations 1 to 5: the same with θ_t, every token scored under θ_t and under θ_0 → θ_6" in said
    assert "⟦2+2=4;4+8=2</s>⟧  worth 1" in said  # the real answer
    assert said.count("  worth ") == 5


def test_the_verb_reward(call: Said) -> None:
    said = call("reward", "--dry-run", "threads=1", "reward.margin=0.5")
    assert "1200 steps of 32 pairs" in said
    assert "margin 0.5, centring 0.01, lr 0.002 → a reward model" in said
    assert "2. judged on 600 held-out pairs" in said
    assert "SFT" not in said.split("config")[0]


def test_scoring_has_no_plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sparring", "reward", "score", "run", "file", "--dry-run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "--dry-run is for training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({}, {"SFT", "play", "score", "learn", "judge"}),
        ({"dpo": {}}, {"SFT", "score", "learn", "judge", "test"}),
        ({"reinforce": {"prompts": 20}}, {"SFT", "play", "reward", "score", "learn", "judge"}),
        ({"reward": {}}, {"learn", "judge"}),
    ],
)
def test_check_follows_the_sections(section: dict[str, Any], parts: set[str], call: Said, tmp_path: Path) -> None:
    """The same facts as the verb's own --dry-run; every part of the estimate takes time, and memory and disk are."""
    paired = "dpo" in section or "reward" in section
    data = {"train": "laboratory", "split": "[:60]", "eval_limit": 20}
    data |= {"subset": "preferences"} if paired else {}
    data |= {"test_size": 20} if "dpo" in section else {}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"data": data, "generation": {"max_new_tokens": 16}, **section}))
    found = facts(call, "check", "a.yaml")
    verb = next(iter(section), "run")
    assert set(found) == KEYS
    assert found["verb"] == verb
    estimate = found["estimate"]
    assert set(estimate["seconds"]) == parts
    assert estimate["memory_bytes"] > estimate["base_bytes"] > 0
    assert estimate["disk_bytes"] > 0
    assert estimate["player_steps"][0] > 0
    same = facts(call, verb, "a.yaml", "--dry-run")
    assert {key: value for key, value in same.items() if key != "estimate"} == {
        key: value for key, value in found.items() if key != "estimate"
    }


def rows(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


GOOD = [{"prompt": f"{i}?", "chosen": f"{i} is", "rejected": f"{i} no"} for i in range(12)]


def test_ties_and_bad_rows_are_in_the_plan(call: Said, tmp_path: Path) -> None:
    tie = {"prompt": "tie?", "chosen": "yes", "rejected": "no", "votes": [1, 0, 0.5]}
    file = rows(tmp_path / "p.jsonl", *GOOD, *([tie] * 9), {"prompt": "e", "chosen": "", "rejected": "x"})
    words = ("dpo", f"data.train={file}", "data.subset=", "threads=1", "--dry-run", "data.eval_size=2")
    assert "p.jsonl:22: empty answer: chosen is" in call(*words)
    assert "a tie: of 3 people" in call(*words, "data.bad_rows=skip")
    said = call(*words, "data.bad_rows=skip", "data.ties=half")
    assert "ties among the first are told as two halves each" in said
    assert "1 bad rows left out, the first: p.jsonl:22" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dpo", "dpo.bata=1"), 'did you mean "dpo.beta"'),
        (("reinforce", "reinforce.sample=1"), 'did you mean "reinforce.samples"'),
        (("reward", "reward.lrr=1"), 'did you mean "reward.lr"'),
        (("dpo", "data.subset="), "fit no format"),
        (("reinforce", "data.train={file}", "model.base=laboratory"), "nothing says what an answer is worth"),
        (("reinforce", "scorer={{name: model, path: nowhere}}"), "nowhere"),
        (("reinforce", "generation.temperature=0.5"), "samples of the player itself"),
        (("reinforce", "dpo={{}}"), "use `sparring dpo`"),
        (("check", "dpo={{}}", "reward={{}}"), "the sections dpo and reward are for different verbs"),
        (("check", "compare={{arms: [dpo]}}"), "learns from pairs"),
    ],
)
def test_refused_as_the_verb_would(words: tuple[str, ...], said: str, call: Said, tmp_path: Path) -> None:
    examples = [{"prompt": f"{i}?", "completion": f"{i}"} for i in range(9)]
    file = rows(tmp_path / "e.jsonl", *examples)
    dry = () if words[0] == "check" else ("--dry-run",)
    assert said in call(*(word.format(file=file) for word in words), *dry, "threads=1")
    assert [path.name for path in tmp_path.iterdir()] == ["e.jsonl"]


def test_a_config_with_a_comparison_is_planned_as_one(call: Said) -> None:
    words = ["data.subset=preferences", "dpo.beta=0.3", "compare={arms: [sft, dpo], seeds: [0, 1]}", "threads=1"]
    said = call("check", *words)
    assert "then: 4 arms × 2 seeds at equal flops" in said
    assert "opponent: θ_0, never the base" in said


def test_a_budget_is_what_the_plan_says(call: Said) -> None:
    said = call("dpo", "--dry-run", "threads=1", "selfplay.budget={unit: steps, amount: 7}")
    assert "3. DPO: what a budget of 7 steps leaves, in steps of 32 pairs" in said
