"""A comparison along an axis: its arms and grids, what is refused, costs, and the verdict in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests import fakes

from sparring.arms import Arm
from sparring.axis import asked_arms, read_axis, taken
from sparring.config import CompareConfig, Config
from sparring.configfile import build_config, changed
from sparring.costs import costs_of, mean_costs
from sparring.errors import ConfigError
from sparring.evaluation.metrics import METRICS
from sparring.evaluation.paired import compare
from sparring.evaluation.verdicts import along
from sparring.methods import METHODS
from sparring.report.records import read_run
from sparring.study import Study


def config(**changes: Any) -> Config:
    return build_config({"method": {"name": "lora", "r": 8}, "selfplay": {"iterations": 3}, **changes})


def arms(key: str, values: list[Any], base: Config | None = None, **compare: Any) -> dict[str, Arm]:
    asked = CompareConfig.model_validate({"axis": {"key": key, "values": values}, **compare})
    return {arm.name: arm for arm in asked_arms(base or config(), asked)[1]}


# ---------------------------------------------------------------- arms


def test_every_value_is_fine_tuned_and_then_spars() -> None:
    found = arms("method", ["lora", "dora", "full"])
    assert list(found) == ["lora-sft", "lora", "dora-sft", "dora", "full-sft", "full"]
    for name in ("lora", "dora", "full"):
        alone, play = (changed(config(), found[arm].settings) for arm in (f"{name}-sft", name))
        assert alone.method == play.method
        assert alone.method.name == name
        assert (alone.selfplay.iterations, play.selfplay.iterations) == (0, 3)
        assert play.selfplay.anchor > 0
        assert found[f"{name}-sft"].values == list(METHODS[name].lr)
        assert (found[name].after, found[f"{name}-sft"].after) == (f"{name}-sft", None)
    assert not any(arm.matched for arm in found.values())


def test_another_method_replaces_the_section_whole_and_keeps_what_both_have() -> None:
    found = arms("method", ["lora", "dora", "ia3"])
    made = {name: changed(config(), found[name].settings).method for name in ("lora", "dora", "ia3")}
    assert made["lora"] == config().method
    assert made["dora"].model_dump()["r"] == 8
    assert set(made["ia3"].model_dump()) == set(METHODS["ia3"].settings.model_fields)


def test_target_and_reference_are_of_the_axis() -> None:
    asked = CompareConfig.model_validate({"axis": {"key": "method", "values": ["lora", "dora", "full"]}})
    compare, made = asked_arms(config(), asked)
    assert (compare.target, compare.reference) == ("dora", "lora")
    against = {arm.name: arm.against for arm in made}
    assert against == {
        "lora-sft": (), "lora": ("lora-sft",), "dora-sft": ("lora-sft",), "dora": ("lora", "dora-sft"),
        "full-sft": ("lora-sft",), "full": ("lora", "full-sft"),
    }  # fmt: skip


def test_any_key_may_be_the_axis_and_values_are_as_the_config_reads_them() -> None:
    found = arms("method.r", [4, 16])
    assert list(found) == ["4-sft", "4", "16-sft", "16"]
    assert changed(config(), found["16"].settings).method.model_dump()["r"] == 16
    assert found["4"].label == "r 4 self-play"
    assert list(arms("method.target_modules", ["a.b", "c/d"])) == ["a.b-sft", "a.b", "c_d-sft", "c_d"]
    anchors = arms("selfplay.anchor", ["0.1", 1])
    assert [changed(config(), anchors[name].settings).selfplay.anchor for name in ("0.1", "1")] == [0.1, 1.0]


def test_what_fine_tuning_does_not_see_is_tuned_once() -> None:
    found = arms("selfplay.beta", [0.1, 1.0])
    assert (found["1-sft"].key, found["1-sft"].after, found["1"].after) == (None, "0.1-sft", "0.1-sft")
    assert found["1-sft"].against == ()  # the same weights: there is nothing to compare


def test_grids_that_are_given_are_taken_and_not_widened() -> None:
    found = arms("method", ["lora", "full"], lr=[1e-5, 1e-4], sft_lr=[1e-3])
    assert all(
        (found[name].values, found[name].shares, found[name].widens) == ([1e-5, 1e-4], (), 0)
        for name in METHODS
        if name in found
    )
    assert all(found[f"{name}-sft"].values == [1e-3] for name in ("lora", "full"))


def test_an_axis_over_a_learning_rate_has_no_grid_of_it() -> None:
    found = arms("sft.lr", [1e-3, 1e-2])
    assert found["0.001-sft"].key is None
    assert found["0.01"].values == taken((1 / 30, 1 / 10, 1 / 3), 1e-2)
    played = arms("selfplay.lr", [1e-4, 1e-3])
    assert (played["0.001"].key, played["0.001"].values, played["0.001"].after) == (None, [], "0.0001-sft")


# ---------------------------------------------------------------- choosing


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Study:
    """A study whose runs are not made: each one's held-out number is the distance of its learning rate from 0.01."""
    axis = {"key": "method", "values": ["lora", "full"]}
    made = Study(changed(config(), {"runs": str(tmp_path), "compare": {"axis": axis}}), say=lambda line: None)
    tried: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        "sparring.study.carry_out", lambda tasks, *_: tried.extend((t.arm.name, t.value) for t in tasks)
    )
    monkeypatch.setattr(made, "validation", lambda arm: [abs(value - 0.01) for value in arm.values])
    made.tried = tried  # type: ignore[attr-defined]
    return made


def test_a_grid_goes_on_beyond_its_end_while_the_best_lies_there(study: Study) -> None:
    study.run()
    tried = study.tried  # type: ignore[attr-defined]
    assert [value for name, value in tried if name == "lora-sft"][:5] == [1e-4, 3e-4, 1e-3, 0.0033, 0.011]
    assert study.chosen["lora-sft"] == 0.011
    assert [value for name, value in tried if name == "full-sft"][:6] == [3e-5, 1e-4, 3e-4, 9e-4, 0.0027, 0.0081]


def test_self_play_starts_from_what_its_own_fine_tuning_chose(study: Study) -> None:
    study.run()
    named = {arm.name: arm for arm in study.arms}
    for name in ("lora", "full"):
        chosen = study.chosen[f"{name}-sft"]
        assert named[name].settings["sft.lr"] == chosen
        assert set(taken((1 / 30, 1 / 10, 1 / 3), chosen)) <= set(named[name].values)
        task = study.task(named[name], study.chosen[name], 0)
        assert task.start == study.task(named[f"{name}-sft"], chosen, 0).folder
        assert task.config.sft.lr == chosen


def test_a_grid_without_a_difference_is_not_widened(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "validation", lambda arm: [0.5 for _ in arm.values])
    study.run()
    assert all(len(arm.values) == 3 for arm in study.arms)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("key", "values", "compare", "said"),
    [
        ("method", ["lora", "lorra"], {}, 'did you mean "lora"'),
        ("method", ["lora", 3], {}, "names of methods"),
        ("method", ["lora"], {}, "two or more"),
        ("method", [], {}, "two or more"),
        ("method", ["lora", "lora"], {}, "twice"),
        ("selfplay.beta", [0.1, "1e-1"], {}, "twice"),
        ("selfplay.bta", [0.1, 1], {}, r"selfplay\.beta"),
        ("method.length", [4, 8], {}, "is not known for method lora"),
        ("selfplay", [{"beta": 1}, {"beta": 2}], {}, "section"),
        ("data.test_size", [10, 20], {}, "must share"),
        ("seed", [0, 1], {}, "must share"),
        ("evaluation.select", ["nll", "match"], {}, "must share"),
        ("start", ["a", "b"], {}, "must share"),
        ("selfplay.iterations", [0, 1], {}, "nothing would spar"),
        ("method", ["lora", "dora"], {"arms": ["spin"]}, r"compare\.arms"),
        ("method", ["lora", "dora"], {"target": "spin"}, r"compare\.target"),
        ("method", ["lora", "dora"], {"match": "steps"}, r"compare\.match"),
    ],
)
def test_refusals(key: str, values: list[Any], compare: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        arms(key, values, **compare)


def test_a_start_is_of_one_method() -> None:
    with pytest.raises(ConfigError, match="`start` is a player of one method"):
        arms("method", ["lora", "dora"], config(start="somewhere"))


def test_the_option_is_an_override() -> None:
    made = build_config({}, [read_axis("selfplay.beta=0.1,[0.1, 0.3],1e-2")])
    assert made.compare is not None
    assert made.compare.axis is not None
    assert (made.compare.axis.key, made.compare.axis.values) == ("selfplay.beta", [0.1, [0.1, 0.3], "1e-2"])
    for wrong in ("method", "method=", "=lora", "method=[lora"):
        with pytest.raises(ConfigError, match="--axis"):
            read_axis(wrong)


# ---------------------------------------------------------------- costs and words


def test_costs_are_read_from_a_runs_phases(tmp_path: Path) -> None:
    def phase(name: str, seconds: float, **facts: Any) -> dict[str, Any]:
        return {"event": "phase", "phase": name, "seconds": seconds, **facts}

    events = [
        phase("sft", 2.0, tokens=400, trainable=64, memory={"bytes": 900, "of": "process"}),
        phase("sft-scores", 50.0, memory={"bytes": 5000, "of": "process"}),
        phase("0/played", 4.0, sampled=100, tokens=300, memory={"bytes": 700, "of": "GPU"}),
        phase("0/pairs", 1.0),
        phase("0/player", 3.0, tokens=600, trainable=64, memory={"bytes": 800, "of": "GPU"}),
        phase("1/played", 1.0, sampled=100),
        phase("1/player", 1.0, tokens=200, trainable=64),
    ]
    run = fakes.make_run(tmp_path / "run", events, fakes.lock(), fakes.best())
    for place, size in (("sft", 10), ("0/player", 12)):
        (run / place).mkdir(parents=True, exist_ok=True)
        (run / place / "adapter_model.safetensors").write_bytes(b"x" * size)
    found = costs_of(read_run(run))
    assert found == {
        "trainable": 64, "disk_bytes": 12, "sft_seconds": 2.0, "play_seconds": 5.0, "score_seconds": 1.0,
        "learn_seconds": 4.0, "memory_bytes": 800, "memory_of": "GPU", "play_tokens_per_second": 40.0,
        "learn_tokens_per_second": 200.0,
    }  # fmt: skip
    other = found | {"play_seconds": 7.0, "memory_bytes": 900, "play_tokens_per_second": None}
    both = mean_costs([found, other])
    assert (both["play_seconds"], both["memory_bytes"], both["play_tokens_per_second"]) == (6.0, 900, 40.0)
    json.dumps(both)


def test_a_run_that_says_nothing_has_no_costs(tmp_path: Path) -> None:
    found = costs_of(read_run(fakes.make_run(tmp_path / "run", [], fakes.lock(), fakes.best())))
    assert found["memory_bytes"] is None
    assert found["trainable"] is None
    assert found["learn_tokens_per_second"] is None


def test_the_verdict_along_an_axis() -> None:
    prompts = [0.1 * (place % 7) for place in range(300)]

    def against(shift: float, noise: float) -> Any:
        mine = [[value + shift + noise * (-1) ** place for place, value in enumerate(prompts)] for _ in range(3)]
        return compare(mine, [prompts] * 3, [[1.0] * 300] * 3, better="lower")

    same, worse = against(0.0, 0.3), against(0.5, 0.01)
    found: dict[str, dict[str, Any]] = {
        "Self-play, against lora": {"dora": (same, 0.9), "ia3": (worse, 0.001), "full": (same, 0.9)},
        "SFT, against lora": {"ia3": (worse, 0.2)},
        "Self-play, against its own SFT": {},
    }
    said = along(METRICS["nll"], {"lora SFT": 0.2, "lora self-play": 0.1}, found, 0.01)
    assert said == (
        "Measured in NLL, 3 seeds × 300 prompts. Self-play, against lora: no difference seen with dora and full; worse "
        "with ia3. SFT, against lora: worse, but not certain after correcting, with ia3. The lowest mean of 2 arms is "
        "that of lora self-play, 0.1000 nats per token."
    )
    tiny = along(METRICS["nll"], {"lora SFT": 0.2}, found, 0.6)
    assert "none of practical size with ia3" in tiny
