"""What the page of a run that learns from rewards says, from made-up records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparring.report.findings import last_line, verdict
from sparring.report.page import write_report
from sparring.report.records import read_run
from sparring.report.tables import result_rows


def judged(
    player: str, reward: float, nll: float, gain: tuple[float, float, float] | None = None
) -> list[dict[str, Any]]:
    """The events of a judged player."""
    phase = {"base": "base-scores", "sft": "sft-scores"}.get(player, f"{player}/scores")
    label = {"base": "base", "sft": "θ_0 (SFT)"}.get(player, f"θ_{int(player) + 1}" if player.isdecimal() else "")
    shape = {"length": 12.0, "real_length": 12.0, "end_rate": 1.0, "real_end_rate": 1.0}
    scores = {"event": "scores", "phase": phase, "player": player, "label": label, "n": 100, "nll": nll, **shape}
    difference = gain and dict(zip(("mean", "low", "high"), gain, strict=True))
    found = {"reward": reward, "reward_low": reward - 0.02, "reward_high": reward + 0.02, "real_reward": 1.0}
    rewards = {"event": "reward", "phase": phase, "player": player, "scorer": "validity", "entropy": 0.1, **found}
    return [{**scores, "kl_start": 0.3}, {**rewards, "reward_difference": difference}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of two iterations, whose last player has the highest reward and not the lowest NLL."""
    events = [
        *judged("sft", 0.80, 0.110),
        *judged("base", 0.50, 0.170, (-0.3, -0.4, -0.2)),
        *judged("0", 0.85, 0.105, (0.05, -0.01, 0.11)),
        *judged("1", 0.95, 0.120, (0.15, 0.10, 0.20)),
    ]
    for t in (0, 1):
        for step in (1, 2):
            numbers = {
                "loss": -0.01,
                "policy_loss": -0.01,
                "kl": 0.2 * step,
                "clipped": 0.01,
                "lr": 1e-3,
                "grad_norm": 1,
            }
            events.append({"event": "step", "phase": f"{t}/player", "step": step, "steps": 2, **numbers})
        for phase in ("played", "rewards", "scored", "player"):
            events.append({"event": "phase", "phase": f"{t}/{phase}", "seconds": 1.0, "tokens": 10, "flops": 10})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    lock = {"name": "r", "config": {"reinforce": {"iterations": 2}, "sft": {"epochs": 1}}}
    (tmp_path / "run.lock.yaml").write_text(yaml.safe_dump(lock))
    (tmp_path / "best").mkdir()
    write_best(tmp_path, "1", 0.95)
    return tmp_path


def write_best(folder: Path, player: str, value: float, metric: str = "reward") -> None:
    best = {"player": player, "metric": metric, "value": value, "why": "the highest", "rolled_back": player != "1"}
    (folder / "best" / "best.json").write_text(json.dumps(best))


def test_the_verdict_is_about_reward_and_says_where_nll_disagrees(folder: Path) -> None:
    said = verdict(folder)
    assert said.startswith("Best player: θ₂. Mean held-out reward 0.9500 (validity) against 0.8000 for θ₀ (SFT)")
    assert "difference +0.1500 [+0.1000, +0.2000], 95 % over 100 prompts. The interval lies above 0" in said
    assert "Reward and likelihood disagree: by held-out NLL θ₁ is best (0.1050 against 0.1200)." in said


def test_where_another_metric_chose_it_is_named_and_what_the_scorer_would_choose(folder: Path) -> None:
    write_best(folder, "0", 0.105, "nll")
    said = verdict(folder)
    assert said.startswith("Best player by held-out NLL: θ₁. Mean held-out reward 0.8500 (validity) against 0.8000")
    assert "The scorer and likelihood disagree: by held-out NLL θ₁ is best (0.1050 against 0.1200)" in said
    page = write_report(folder).read_text(encoding="utf-8")
    assert "The player is chosen by held-out NLL; the middle one is the yardstick" in page
    write_best(folder, "sft", 0.110, "nll")
    assert "No iteration is better so; its mean held-out reward 0.8000 (validity): " in verdict(folder)


def test_where_they_agree_nothing_is_said_of_it(folder: Path) -> None:
    write_best(folder, "0", 0.85)
    said = verdict(folder)
    assert "disagree" not in said
    assert "The interval includes 0: no difference seen." in said
    assert "Rolled back: θ₂ did not improve on it." in said


def test_if_nothing_helped_it_is_said(folder: Path) -> None:
    write_best(folder, "sft", 0.8)
    said = verdict(folder)
    assert "No iteration improved on its mean held-out reward 0.8000 (validity): θ₁ +0.0500 [−0.0100, +0.1100]" in said


def test_a_lower_reward_than_the_bases_is_not_missed(folder: Path) -> None:
    assert last_line(folder) is None
    write_best(folder, "sft", 0.8)
    assert last_line(folder) is None
    lines = (folder / "metrics.jsonl").read_text().replace('"reward": 0.5', '"reward": 0.9')
    (folder / "metrics.jsonl").write_text(lines)
    assert "than base in reward on the held-out prompts that chose it: 0.8000 against 0.9000" in str(last_line(folder))


def test_the_page_speaks_of_rewards_and_not_of_opponents(folder: Path) -> None:
    page = write_report(folder).read_text(encoding="utf-8")
    for wanted in (
        "Reward and likelihood",
        "Learning from rewards",
        "arXiv 2402.03300",
        "What the scorer gives an answer",
    ):
        assert wanted in page
    for foreign in ("SPIN loss", "accuracy</b>", "the opponent, who wrote"):
        assert foreign not in page
    header, rows = result_rows(folder)
    assert header[1] == "reward [95 %]"
    assert rows[-1][1] == "1.0000"
    assert "accuracy" not in header
    assert read_run(folder).opponent("0") is None
    assert "iteration 0: score tokens" in page


def test_an_unfinished_run_counts_its_own_iterations(folder: Path) -> None:
    (folder / "best" / "best.json").unlink()
    assert "2 of 2 iterations judged" in verdict(folder)


# ---------------------------------------------------------------- a scorer in self-play


def of_self_play(folder: Path, metric: str = "nll", player: str = "0") -> None:
    """The same players, as of a run of self-play with a scorer."""
    lock = {"name": "r", "config": {"selfplay": {"iterations": 2}, "sft": {"epochs": 1}}}
    (folder / "run.lock.yaml").write_text(yaml.safe_dump(lock))
    best = {"player": player, "metric": metric, "value": 0.105, "why": "it is", "rolled_back": False}
    (folder / "best" / "best.json").write_text(json.dumps(best))


def test_self_play_says_when_scorer_and_likelihood_disagree(folder: Path) -> None:
    of_self_play(folder)
    said = verdict(folder)
    assert said.startswith("Best player: θ₁. Held-out NLL 0.1050 per token")
    assert (
        "The scorer and likelihood disagree: by held-out NLL θ₁ is best (0.1050 against 0.1200), by mean held-out "
        "reward (validity) θ₂ (0.9500 against 0.8500). Its reward less that of θ₀ (SFT): +0.1500 [+0.1000, +0.2000]."
    ) in said
    of_self_play(folder, "reward", "1")
    assert "Chosen by mean held-out reward" in verdict(folder)
    page = write_report(folder).read_text()
    assert "<dt>reward</dt>" in page
    assert "SPIN loss" in page


def test_self_play_says_when_rewards_are_equal(folder: Path) -> None:
    of_self_play(folder)
    lines = (folder / "metrics.jsonl").read_text().replace('"reward": 0.95', '"reward": 0.85')
    (folder / "metrics.jsonl").write_text(lines)
    assert "puts θ₁ and θ₂ first alike; of them θ₁ has the lowest NLL." in verdict(folder)
