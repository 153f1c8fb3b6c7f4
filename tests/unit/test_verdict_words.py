"""Words that must not contradict each other: ties of a scorer, and what a preference is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparring.cli_runs import given_config
from sparring.laboratory import dpo_config
from sparring.report.preferred import preference_verdict
from sparring.report.records import Run
from sparring.report.rewarded import scorer_and_nll


def run_of(**facts: Any) -> Run:
    return Run(folder=Path("run"), **facts)


def test_players_that_a_scorer_puts_first_alike() -> None:
    nll = {"sft": 0.12, "0": 0.11, "1": 0.10}
    reward = {"sft": 0.7, "0": 0.8, "1": 0.8}
    run = run_of(scores={name: {"nll": nll[name], "reward": reward[name], "scorer": "validity"} for name in nll})
    assert scorer_and_nll(run).startswith(
        "The scorer (validity) puts θ₁ and θ₂ first alike; of them θ₂ has the lowest NLL."
    )
    run.scores["1"]["reward"] = 0.9
    assert scorer_and_nll(run).startswith("The scorer (validity) and held-out NLL agree on θ₂.")


@pytest.mark.parametrize(("low", "said"), [(-0.01, True), (0.01, False)])
def test_a_gain_over_a_baseline_that_is_not_certain_is_called_so(low: float, said: bool) -> None:
    row = {
        "preference": 0.887, "preference_low": 0.85, "preference_high": 0.92, "n": 300, "prompts": 100,
        "preference_longer": 0.5, "preference_longer_gap": {"mean": 0.387, "low": 0.3, "high": 0.45},
        "preference_likelier": 0.883, "preference_likelier_gap": {"mean": 0.004, "low": low, "high": 0.03},
    }  # fmt: skip
    words = preference_verdict(run_of(preferred=row))
    assert ("It is not certainly better than taking the likelier one under the reference (+0.4" in words) is said
    assert "the longer answer (" not in words


def test_the_embedded_defaults_subset_is_of_its_own_data() -> None:
    assert given_config(None, ["data.train=pairs.jsonl"], default=dpo_config()).data.subset is None
    assert given_config(None, ["data.train=a", "data.subset=b"], default=dpo_config()).data.subset == "b"
    assert given_config(None, [], default=dpo_config()).data.subset == "preferences"
