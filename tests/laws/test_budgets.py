"""Budgets: what self-play may spend is met, generation included, in each unit, on the real code path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparring.allowance import spent, spent_on_play
from sparring.drawn import how_many
from sparring.errors import RunError
from sparring.reinforce import reinforce
from sparring.rewarding import settings_of
from sparring.run import Event
from sparring.selfplay import self_play
from tests.laws.lab import Game, session

SHORT = ("selfplay.iterations=2", "evaluation.samples=1", "selfplay.stop_nll_rise=null", "selfplay.stop_real_drop=null")


REWARDED = ("reinforce.iterations=2", "reinforce.samples=4", "reinforce.lr=2e-3", "reinforce.batch_size=8")


def played(folder: Path, *settings: str) -> Event:
    with session(folder, *SHORT, *settings) as opened:
        self_play(opened)
        return spent_on_play(opened.run.folder, 2)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Event:
    return played(tmp_path_factory.mktemp("target"))


@pytest.mark.parametrize("unit", ["flops", "tokens", "steps"])
@pytest.mark.parametrize("arm", ["none", "other_prompt"])
def test_an_arm_spends_what_the_target_spent(tmp_path: Path, target: Event, arm: str, unit: str) -> None:
    budget = f"selfplay.budget={{unit: {unit}, amount: {target[unit]}}}"
    found = played(tmp_path, f"selfplay.negatives={arm}", budget)
    assert found[unit] == pytest.approx(target[unit], rel=0.02)
    others = {"flops", "tokens", "steps"} - {unit}
    assert any(found[other] != target[other] for other in others)


@pytest.mark.parametrize("arm", ["opponent", "none"])
def test_layers_computed_again_are_in_the_budget(tmp_path: Path, target: Event, arm: str) -> None:
    settings = (f"selfplay.negatives={arm}", "optimiser.gradient_checkpointing=true")
    found = played(tmp_path, *settings, f"selfplay.budget={{unit: flops, amount: {target['flops']}}}")
    assert found["flops"] == pytest.approx(target["flops"], rel=0.03)


def test_steps_are_met_where_examples_are_no_multiple_of_the_batch(tmp_path: Path) -> None:
    settings = ("selfplay.negatives=none", "selfplay.batch_size=20", "selfplay.budget={unit: steps, amount: 14}")
    assert played(tmp_path, *settings)["steps"] == 14


def test_what_was_spent_is_what_the_phases_say(tmp_path: Path) -> None:
    with session(tmp_path, *SHORT) as opened:
        self_play(opened)
        folder = opened.run.folder
        phases = [spent(folder / str(t) / name) for t in (0, 1) for name in ("played", "pairs", "player")]
        total = spent_on_play(folder, 2)
        assert all(total[unit] == pytest.approx(sum(one[unit] for one in phases)) for unit in total)
        assert spent(folder / "0" / "played")["tokens"] > 0  # generation counts
        assert spent(folder / "0" / "player")["steps"] > 0


def test_a_budget_that_is_used_up_takes_one_step_and_says_so(tmp_path: Path) -> None:
    with session(tmp_path, *SHORT, "selfplay.budget={unit: tokens, amount: 1}") as opened:
        self_play(opened)
        assert spent(opened.run.folder / "0" / "player")["steps"] == 1
        assert "used up" in (opened.run.folder / "metrics.jsonl").read_text()


def test_seconds_are_forecast_from_what_was_learnt(tmp_path: Path) -> None:
    with session(
        tmp_path, *SHORT, "selfplay.negatives=none", "selfplay.budget={unit: seconds, amount: 1.0e-6}"
    ) as opened:
        self_play(opened)
        assert spent(opened.run.folder / "0" / "player")["steps"] == 1


def test_seconds_need_something_to_forecast_from(tmp_path: Path) -> None:
    settings = ("sft.epochs=0", "selfplay.negatives=none", "selfplay.budget={unit: seconds, amount: 5}")
    with session(tmp_path, *SHORT, *settings) as opened, pytest.raises(RunError, match="give it in flops, tokens"):
        self_play(opened)


# ---------------------------------------------------------------- learning from rewards


def facts(run: Path, phase: str) -> Event:
    found: Event = json.loads((run / phase / "phase.json").read_text())["facts"]
    return found


@pytest.mark.parametrize("unit", ["flops", "tokens", "steps"])
def test_rl_spends_what_the_target_spent(tmp_path: Path, target: Event, unit: str) -> None:
    """Groups of answers are played and scored for it: it asks fewer prompts, and learns with what is left."""
    budget = f"selfplay.budget={{unit: {unit}, amount: {target[unit]}}}"
    with session(tmp_path, *SHORT, *REWARDED, budget) as opened:
        reinforce(opened)
        run = opened.run.folder
        found = spent_on_play(run, 2)
        asked = [facts(run, f"{t}/played")["answers"] / 4 for t in (0, 1)]
        assert found[unit] == pytest.approx(target[unit], rel=0.02)
        assert all(8 <= prompts < 48 for prompts in asked), "prompts are drawn by what they cost"
        for t in (0, 1):
            assert 0.5 < facts(run, f"{t}/player")["passes"] <= 4


def test_all_phases_of_rl_are_in_the_budget(tmp_path: Path) -> None:
    with session(tmp_path, *SHORT, *REWARDED, "reinforce.prompts=16") as opened:
        reinforce(opened)
        run = opened.run.folder
        phases = [spent(run / str(t) / name) for t in (0, 1) for name in ("played", "rewards", "scored", "player")]
        total = spent_on_play(run, 2)
        assert all(total[unit] == pytest.approx(sum(one[unit] for one in phases)) for unit in total)
        assert spent(run / "1" / "scored")["flops"] > 0
        assert facts(run, "0/player")["passes"] == 1


def test_the_number_of_prompts_follows_from_finished_phases(tmp_path: Path) -> None:
    """So a restart in the middle of playing asks the same ones. A smaller budget asks fewer, but at least one."""
    asked = []
    for amount in (3.0e9, 1.5e9, 1.0):
        budget = f"selfplay.budget={{unit: flops, amount: {amount}}}"
        with session(tmp_path, *SHORT, *REWARDED, budget, name=f"of-{amount:g}") as opened:
            game = Game(opened)
            config = settings_of(opened)
            asked.append(how_many(opened, config, game.data, game.start, 0))
            assert asked[-1] == how_many(opened, config, game.data, game.start, 0)
    assert asked[0] > asked[1] > asked[2] == 1


def test_what_is_left_over_is_said(tmp_path: Path) -> None:
    settings = ("reinforce.prompts=8", "selfplay.budget={unit: flops, amount: 1e11}")
    with session(tmp_path, *SHORT, *REWARDED, *settings) as opened:
        reinforce(opened)
        assert [facts(opened.run.folder, f"{t}/player")["passes"] for t in (0, 1)] == [4, 4]
        log = (opened.run.folder / "metrics.jsonl").read_text()
        assert "4 are made, for the same answers teach less each time, and the rest is left to the next" in log
        assert "and the rest is not spent" in log


def test_rl_meets_a_budget_that_does_not_pay_for_a_batch(tmp_path: Path) -> None:
    """It asks fewer prompts than a step may hold, and learns a smaller step."""
    with session(tmp_path, *SHORT, *REWARDED, "selfplay.budget={unit: flops, amount: 6e8}") as opened:
        reinforce(opened)
        run = opened.run.folder
        asked = [facts(run, f"{t}/played")["answers"] / 4 for t in (0, 1)]
        assert all(1 <= prompts < 8 for prompts in asked)
        assert spent_on_play(run, 2)["flops"] == pytest.approx(6e8, rel=0.25)


@pytest.mark.parametrize("settings", [(), ("reinforce.prompts=2",)])
def test_rl_asks_one_prompt_of_a_budget_that_pays_for_none_and_ends(tmp_path: Path, settings: tuple[str, ...]) -> None:
    budget = "selfplay.budget={unit: flops, amount: 1}"
    rewards = (*REWARDED, "scorer={name: regex, pattern: '[0-4]$'}", "reinforce.samples=16")
    with session(tmp_path, *SHORT, *rewards, budget, *settings) as opened:
        reinforce(opened)
        run = opened.run.folder
        assert facts(run, "0/played")["answers"] == 16 * (2 if settings else 1)
        assert facts(run, "0/player")["passes"] == 1
        assert not (run / "1").exists()
        before = {path: path.read_bytes() for path in run.rglob("phase.json")}
        reinforce(opened)  # again: it ends at the same place
        assert {path: path.read_bytes() for path in run.rglob("phase.json")} == before
