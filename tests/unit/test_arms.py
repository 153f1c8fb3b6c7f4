"""The arms of a comparison: what a name stands for, own arms, grids, and refusals before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from sparring.arms import chosen_arms, learning_rates, prefers, rewarded
from sparring.asked import asked_study
from sparring.config import CompareConfig, Config
from sparring.configfile import build_config, changed
from sparring.errors import ConfigError
from sparring.known_arms import KNOWN, PAIRED, PROMPTED, SCORED, STANDARD
from sparring.rewards.settings import ValidityScore


def config(**selfplay: Any) -> Config:
    return build_config({"selfplay": {"iterations": 3, **selfplay}, "sft": {"lr": 2e-3}})


def arms(settings: Config | None = None, **compare: Any) -> dict[str, Any]:
    found = chosen_arms(settings or config(), CompareConfig(**compare))
    return {arm.name: arm for arm in found}


def test_the_standard_arms_are_those_of_the_algorithm() -> None:
    assert list(arms()) == STANDARD
    assert set(STANDARD) == {
        "sft", "continued", "stages", "rank", "spin", "spin-anchor", "stale", "shuffled", "other-prompt", "temperature",
    }  # fmt: skip
    assert set(KNOWN) == {*STANDARD, *PROMPTED, *PAIRED, *SCORED}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_arm_is_a_config(name: str) -> None:
    base = changed(config(beta=[0.1, 0.3, 1.0], lr=[1e-4, 5e-5, 2e-5]), {"evaluation.match": "whole"})
    arm = arms(base, arms=[name])[name]
    for value in arm.values or [None]:
        settings = {**arm.settings, **({arm.key: value} if arm.key else {}), "evaluation.select": "match"}
        made = changed(base, settings)
        assert made != base
        assert made.data == base.data


def test_what_arms_change() -> None:
    base = config(anchor=0.0)
    found = arms(base)
    made = {name: changed(base, arm.settings) for name, arm in found.items()}
    assert made["sft"].selfplay.iterations == 0
    assert made["rank"].method.r == 3 * base.method.r
    assert made["rank"].method.alpha / made["rank"].method.r == base.method.alpha / base.method.r
    assert made["stages"].selfplay.hold == "merge"
    assert made["spin"].selfplay.anchor == 0
    assert made["spin-anchor"].selfplay.anchor == 0.2  # the config has none
    # the controls differ from their target in one thing
    for name in ("stale", "shuffled", "other-prompt"):
        one = made[name].selfplay.model_dump()
        two = made["spin-anchor"].selfplay.model_dump()
        assert {key for key in one if one[key] != two[key]} == {"negatives"}


def test_lists_by_iteration_are_cut_with_the_iterations() -> None:
    base = config(beta=[0.1, 0.3, 1.0])
    assert changed(base, {"selfplay.iterations": 1}).selfplay.beta == [0.1]
    assert changed(base, {"selfplay.iterations": 0}).selfplay.beta == 0.1


def test_the_grid_is_the_same_for_every_arm_that_learns() -> None:
    found = arms()
    grids = {tuple(arm.values) for arm in found.values() if arm.key == "selfplay.lr"}
    assert len(grids) == 1
    assert learning_rates(config(lr=2e-5), CompareConfig()) == [2e-5, 2e-4, 2e-3]
    assert learning_rates(config(), CompareConfig(lr=[1e-4, 1e-4])) == [1e-4]


def test_own_arms() -> None:
    own = {"name": "four", "like": "spin", "settings": {"selfplay.samples": 4}, "grid": {"selfplay.beta": [0.1, 1.0]}}
    arm = arms(arms=["sft", own])["four"]
    assert dict(arm.settings) == {"selfplay.anchor": 0.0, "selfplay.samples": 4}
    assert (arm.key, arm.values, arm.label) == ("selfplay.beta", [0.1, 1.0], "four")


def test_own_arms_of_pairs() -> None:
    """Their learning rate is DPO's own, and keys of self-play, which would do nothing, are refused."""
    own = [
        {"name": "ipo", "settings": {"dpo.loss": "ipo"}},
        {"name": "held", "like": "dpo", "settings": {"dpo.anchor": 1.0}},
    ]
    found = arms(arms=own)
    assert [found[name].key for name in ("ipo", "held", "spin-anchor")] == ["dpo.lr", "dpo.lr", "selfplay.lr"]
    assert [prefers(arm) for arm in found.values()] == [True, True, False, False, False]
    for wrong in ({"like": "spin", "settings": {"dpo.beta": 1}}, {"like": "dpo", "grid": {"selfplay.beta": [1.0]}}):
        with pytest.raises(ConfigError, match="learns from pairs, where selfplay"):
            arms(arms=[{"name": "x", **wrong}])


def test_nested_settings_are_dotted_keys() -> None:
    """And so they change one key, not a section, and cannot get round what all arms share."""
    own = {"name": "x", "like": "spin", "settings": {"selfplay": {"beta": 1.0}, "method.r": 4}}
    assert dict(arms(arms=[own])["x"].settings) == {"selfplay.anchor": 0.0, "selfplay.beta": 1.0, "method.r": 4}
    for nested in ({"evaluation": {"match": "whole"}}, {"data": {"test_size": 3}}, {"name": "y"}):
        with pytest.raises(ConfigError, match="tested alike"):
            arms(arms=[{"name": "x", "settings": nested}])


def test_wrong_keys_of_a_comparison() -> None:
    with pytest.raises(ConfigError, match=r'did you mean "compare\.seeds"'):
        build_config({"compare": {"sed": [1]}})
    with pytest.raises(ConfigError, match="settings"):
        build_config({"compare": {"arms": [{"name": "x", "setting": {}}]}})
    with pytest.raises(ConfigError, match=r"compare\.lr"):
        build_config({"compare": {"lr": []}})


def test_target_reference_and_start_are_always_there() -> None:
    assert list(arms(arms=["spin"])) == ["spin", "sft", "spin-anchor", "continued"]


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ({"arms": ["spinn"]}, 'did you mean "spin"'),
        ({"arms": ["spin", "spin"]}, "twice"),
        ({"arms": [{"name": "new"}]}, "settings of its own"),
        ({"arms": [{"name": "x", "like": "spinn", "settings": {"seed": 1}}]}, '"spinn" is not known'),
        ({"arms": [{"name": "a/b", "settings": {"seed": 1}}]}, "not a folder name"),
        ({"arms": [{"name": "x", "grid": {"selfplay.lr": []}}]}, "one key"),
        ({"arms": [{"name": "x", "settings": {"data.test_size": 9}}]}, "tested alike"),
        ({"arms": [{"name": "x", "settings": {"evaluation.match": "whole"}}]}, "tested alike"),
        ({"arms": [{"name": "sft", "grid": {"sft.lr": [1e-3, 1e-4]}}]}, "start from it"),
        ({"target": "sft"}, "spends nothing"),
        ({"target": "spin", "reference": "spin"}, "both"),
    ],
)
def test_refusals(compare: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        arms(**compare)


def test_an_unknown_key_of_an_own_arm_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"selfplay\.samples"):
        changed(config(), {"selfplay.sample": 4})
    with pytest.raises(ConfigError, match="known"):
        changed(config(), {"selfply.samples": 4})


# ---------------------------------------------------------------- learning from rewards, and the best of n


def test_rl_has_as_many_iterations_as_self_play_or_those_of_its_own_section() -> None:
    assert dict(arms(arms=["rl"])["rl"].settings) == {"reinforce.iterations": 3}
    given = build_config({"selfplay": {"iterations": 3}, "reinforce": {"iterations": 5, "beta": 0.3}})
    arm = arms(given, arms=["rl"])["rl"]
    made = changed(given, arm.settings)
    assert made.reinforce is not None
    assert (made.reinforce.iterations, made.reinforce.beta) == (5, 0.3)
    assert (arm.key, tuple(arm.values)) == ("reinforce.lr", tuple(arms(given)["spin"].values))
    assert rewarded(arm)
    assert arm.matched
    assert not any(rewarded(other) for other in arms().values())


def test_what_rl_is_holds_whatever_its_algorithm_is() -> None:
    said = arms(build_config({"reinforce": {"algorithm": "rloo"}}), arms=["rl"])["rl"].what
    assert said == KNOWN["rl"].what
    assert not any(name in said.lower() for name in ("grpo", "rloo"))


def test_an_arm_of_ones_own_that_learns_from_rewards_is_tuned_by_its_own_learning_rate() -> None:
    found = arms(arms=[{"name": "rloo", "settings": {"reinforce.algorithm": "rloo"}}])["rloo"]
    assert found.key == "reinforce.lr"
    own = {"name": "rl-k4", "like": "rl", "settings": {"reinforce": {"samples": 4}}}
    assert arms(arms=[own])["rl-k4"].settings == {"reinforce.iterations": 3, "reinforce.samples": 4}


def test_best_of_n_is_another_arms_run_which_is_added() -> None:
    own = {"name": "four", "like": "spin", "settings": {"selfplay.samples": 4}}
    found = arms(
        arms=["rl-best-of-4", "spin-anchor-best-of-8", "four-best-of-2", own, "sft-best-of-8"], primary="scorer"
    )
    assert list(found) == ["rl-best-of-4", "spin-anchor-best-of-8", "four-best-of-2", "four", "sft-best-of-8", "sft",
                           "spin-anchor", "continued", "rl"]  # fmt: skip
    for name, of, many in (("rl-best-of-4", "rl", 4), ("four-best-of-2", "four", 2), ("sft-best-of-8", "sft", 8)):
        arm = found[name]
        assert (arm.after, arm.best_of, arm.key, arm.values) == (of, many, None, [])
        assert dict(arm.settings) == {**found[of].settings, "evaluation.best_of": many}
        assert arm.label == f"{found[of].label}, best of {many}"
        assert arm.matched == found[of].matched  # the same budget, and so the same run
    assert not found["spin-anchor-best-of-8"].matched  # the target runs as the config says


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ({"arms": ["spin-best-of-8"]}, "has no likelihood, and so no nll, which is compare.primary"),
        ({"arms": ["spin-best-of-8"], "primary": "exact_kl"}, "no exact_kl"),
        ({"arms": ["spin-best-of-1"], "primary": "scorer"}, "N is 2 or more"),
        ({"arms": ["spinn-best-of-8"], "primary": "scorer"}, 'did you mean "spin"'),
        ({"arms": ["spin-best-of-2-best-of-4"], "primary": "scorer"}, "not known"),
        ({"arms": [{"name": "spin-best-of-2", "settings": {"selfplay.beta": 1}}], "primary": "scorer"}, "to spin"),
        ({"arms": ["sft"], "target": "spin-best-of-2", "primary": "scorer"}, "spends nothing"),
        ({"arms": [{"name": "x", "like": "spin", "settings": {"evaluation.best_of": 4}}]}, "tested alike"),
        ({"arms": [{"name": "x", "like": "spin", "settings": {"scorer": "validity"}}]}, "tested alike"),
    ],
)
def test_refusals_of_the_best_of_n(compare: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        arms(**compare)


def test_the_best_of_n_for_a_whole_study_needs_a_metric_that_it_has() -> None:
    settings = build_config({"data": {"test_size": 20}, "evaluation": {"best_of": 4}})
    with pytest.raises(ConfigError, match="leaves the test without nll"):
        arms(settings)
    assert arms(settings, primary="scorer")


def test_a_study_finds_the_scorer_that_it_needs_or_says_that_there_is_none() -> None:
    laboratory = build_config({"data": {"train": "laboratory"}, "compare": {"primary": "scorer", "arms": ["sft"]}})
    assert asked_study(laboratory)[0].scorer == ValidityScore()
    assert asked_study(build_config({"data": {"train": "laboratory"}, "compare": {}}))[0].scorer is None
    elsewhere = {"data": {"train": "chats.jsonl"}, "compare": {"arms": ["rl"]}}
    with pytest.raises(ConfigError, match=r"nothing says what an answer is worth; give scorer"):
        asked_study(build_config(elsewhere))
    told = asked_study(build_config({**elsewhere, "evaluation": {"match": "whole"}}))[0].scorer
    assert told is not None
    assert told.name == "match"
