"""What a study makes of test rows: differences where no prompt shows any, and metrics that an arm has no number for."""

from __future__ import annotations

from typing import Any

from sparring.arms import Ran, chosen_arms
from sparring.config import CompareConfig
from sparring.configfile import build_config
from sparring.studied import _differences
from sparring.testrows import Measured
from sparring.wording import notes, warnings


def told(rewards: list[float], **more: Any) -> Measured:
    rows = [
        {"prompt": str(i // 2), "real": "a", "tokens": 2, "reward": value, **more} for i, value in enumerate(rewards)
    ]
    return Measured([rows, rows], [], [])


def test_equal_shares_are_bounded_by_how_many_prompts_there_were() -> None:
    """A scorer's mean is a share where it is between 0 and 1, though a prompt has two rows."""
    found = _differences(told([1.0, 0.0] * 20), told([1.0, 0.0] * 20))["reward"]
    assert (found.mean, found.low, found.high) == (0, -3 / 20, 3 / 20)
    other = _differences(told([1.0, 5.0] * 20), told([1.0, 5.0] * 20))["reward"]
    assert (other.low, other.high) == (0, 0)


def test_what_one_arm_has_no_number_for_is_not_compared() -> None:
    ranked, plain = told([1.0, 0.0] * 20, nll=None), told([0.0, 0.0] * 20, nll=2.0)
    assert set(_differences(plain, plain)) >= {"nll", "reward"}
    found = _differences(ranked, plain)
    assert "nll" not in found
    assert found["reward"].mean == 0.5


def test_arms_that_spent_otherwise_are_named_with_the_reason() -> None:
    config = build_config({"compare": {"arms": ["spin", "rl", "dpo", "stages"], "target": "spin"}})
    asked = config.compare or CompareConfig()
    ran = [Ran(arm, None, [], []) for arm in chosen_arms(config, asked)]
    spent = {"sft": 0.0, "rl": 14.0, "dpo": 10.2, "stages": 7.0}
    arms = [{"name": one.arm.name, "budget": {"flops": spent.get(one.arm.name, 10.0)}} for one in ran]
    said = [one for one in warnings(asked, ran, arms) if "of the target's" in one]
    assert len(said) == 2
    assert said[0].startswith("RL spent 140% of the target's flops: a prompt's group of answers")
    assert said[1].startswith("staged SFT spent 70% of the target's flops: an iteration was stopped early")
    assert notes(asked, ran, arms, [{}])[0].startswith("Every arm but RL and staged SFT spends the same FLOPs")
    alike = [{**one, "budget": {"flops": 10.0}} for one in arms]
    assert notes(asked, ran, alike, [{}])[0].startswith("Every arm spends the same FLOPs")
    assert not [one for one in warnings(asked, ran, alike) if "of the target's" in one]
