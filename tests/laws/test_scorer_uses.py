"""A scorer in self-play: it judges and may choose, may end an iteration, may leave pairs out; off, nothing changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring.config import decisive
from sparring.configfile import build_config
from sparring.data.pairs import Pair, Rows
from sparring.errors import ConfigError, RunError
from sparring.learning import fine_tune
from sparring.preparing import prepare_data
from sparring.report.findings import verdict, warnings_of
from sparring.report.records import read_run
from sparring.report.tables import result_rows
from sparring.selfplay import self_play
from sparring.watching import fallen
from tests.laws import lab

SHORT = ["selfplay.iterations=1", "data.eval_limit=12", "method.dropout=0.1", "selfplay.checks_per_iteration=3"]
FREE = ["selfplay.stop_nll_rise=null", "selfplay.stop_real_drop=null"]


def played(folder: Path, *overrides: str, name: str = "run") -> Path:
    """The folder of a whole run."""
    with lab.session(folder, *SHORT, *overrides, name=name) as session:
        self_play(session)
        session.run.gather()
        return session.run.folder


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


def best(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "best" / "best.json").read_text())
    return found


def weights(run: Path) -> bytes:
    return (run / "0" / "player" / "adapter_model.safetensors").read_bytes()


# ---------------------------------------------------------------- the config


@pytest.mark.parametrize(
    "key", ["evaluation.select=scorer", "selfplay.stop_score_drop=2", "selfplay.keep_pairs=better"]
)
def test_what_asks_a_scorer_needs_one(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key.split('=')[0]}.* needs something that says how good"):
        build_config({}, [key])
    build_config({}, [key, "scorer=validity"])


def test_a_drop_is_seen_only_at_checks() -> None:
    with pytest.raises(ConfigError, match=r"checks_per_iteration is 0; give it a value above 0"):
        build_config({}, ["scorer=validity", "selfplay.stop_score_drop=1", "selfplay.checks_per_iteration=0"])


def test_older_run_folders_can_be_gone_on_with() -> None:
    """Keys that are not used are not among what a run was made with."""
    plain, used = build_config({}), build_config({}, ["scorer=validity", "selfplay.keep_pairs=better"])
    assert not {"stop_score_drop", "keep_pairs"} & set(decisive(plain)["selfplay"])
    assert decisive(used)["selfplay"] == {**decisive(plain)["selfplay"], "keep_pairs": "better"}


# ---------------------------------------------------------------- select


def test_a_scorer_may_be_added_to_a_finished_run(tmp_path: Path) -> None:
    run = played(tmp_path)
    before = {path: path.read_bytes() for path in sorted(run.rglob("phase.json"))}
    assert not events(run, "reward")
    played(tmp_path, "scorer=validity")
    assert all(path.read_bytes() == content for path, content in before.items())
    found = {event["player"]: event for event in events(run, "reward")}
    assert set(found) == {"base", "sft", "0"}
    assert found["sft"]["reward_difference"] is None
    assert found["0"]["reward_difference"]["low"] <= found["0"]["reward_difference"]["mean"]
    rows = [json.loads(line)["reward"] for line in (run / "0/valued/rewards.jsonl").read_text().splitlines()]
    assert sum(rows) / len(rows) == found["0"]["reward"]
    assert best(run)["metric"] == "nll"
    assert "reward [95 %]" in result_rows(run)[0]
    assert "(validity)" in verdict(run)
    with pytest.raises(RunError, match=r"judged by the scorer {name: validity}, now it is {name: regex"):
        played(tmp_path, 'scorer={name: regex, pattern: "1"}')


def test_the_scorer_chooses(tmp_path: Path) -> None:
    """The answers' last digits cannot all be 9, so rewards differ; whoever has the higher mean is best."""
    scorer = 'scorer={name: regex, pattern: "[6-9]$"}'
    run = played(tmp_path, scorer, "evaluation.select=scorer", "selfplay.lr=2e-2", *FREE)
    said = {event["player"]: event["reward"] for event in events(run, "reward") if event["player"] != "base"}
    assert best(run)["values"] == said
    assert said["sft"] != said["0"]
    assert best(run)["player"] == max(said, key=lambda name: said[name])
    assert best(run)["metric"] == "reward"
    assert "mean held-out reward" in verdict(run)


# ---------------------------------------------------------------- stop


def checks(*gaps: tuple[float, float, float] | None) -> list[dict[str, Any]]:
    found = [gap and dict(zip(("mean", "low", "high"), gap, strict=True)) for gap in gaps]
    return [{"event": "step"}, *({"event": "check", "reward_difference": gap} for gap in found)]


DOWN, UNSURE, UP = (-0.2, -0.3, -0.1), (-0.2, -0.5, 0.1), (0.2, 0.1, 0.3)


@pytest.mark.parametrize(
    ("gaps", "patience", "stops"),
    [
        ([DOWN], 1, True),
        ([DOWN], 2, False),
        ([DOWN, DOWN], 2, True),
        ([UP, DOWN, DOWN], 2, True),
        ([DOWN, UNSURE, DOWN], 2, False),
        ([DOWN, DOWN, UP], 2, False),
        ([None, None], 1, False),
        ([DOWN, DOWN], None, False),
        ([], 1, False),
    ],
)
def test_patience(gaps: list[Any], patience: int | None, stops: bool) -> None:
    said = fallen(checks(*gaps), patience)
    assert (said is not None) == stops
    if said:
        assert "by 0.2000 [0.1000, 0.3000]" in said


def test_a_fall_ends_the_iteration_and_is_rolled_back(tmp_path: Path) -> None:
    """Far too large steps make answers invalid. Nothing else may stop, and the likelihood does not choose."""
    wild = ["scorer=validity", "evaluation.select=scorer", "data.eval_limit=40", "selfplay.lr=0.3", *FREE]
    run = played(tmp_path, *wild, "selfplay.stop_score_drop=1", "selfplay.epochs=4", "selfplay.anchor=0")
    stop = events(run, "stop")
    assert len(stop) == 1
    assert stop[0]["reason"].startswith("the scorer's held-out mean is below that of the iteration's start by")
    steps = [event["steps"] for event in events(run, "step") if event["phase"] == "0/player"]
    assert stop[0]["step"] < steps[0]
    last = events(run, "check")[-1]
    assert last["step"] == stop[0]["step"]
    assert last["reward_difference"]["high"] < 0
    assert best(run)["player"] == "sft"
    assert best(run)["rolled_back"]


def test_looking_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    """With dropout, whose random numbers a look must not use up; by rules, and by players on a base of its own."""
    free = [*FREE, "selfplay.lr=4e-3", "selfplay.batch_size=4"]
    plain = played(tmp_path, *free)
    implicit = f"scorer={{name: implicit, run: '{plain}', player: '0', reference: base}}"
    for name, scorer in (("rules", "scorer=validity"), ("players", implicit)):
        looked = played(tmp_path, *free, scorer, "selfplay.stop_score_drop=50", name=name)
        assert weights(looked) == weights(plain)
        found = events(looked, "check")
        assert found
        assert all(event["reward_difference"] for event in found)
        assert len({event["reward"] for event in found}) > 1 or name == "rules"


def test_without_an_interval_nothing_is_stopped_and_that_is_said(tmp_path: Path) -> None:
    run = played(tmp_path, "scorer=validity", "selfplay.stop_score_drop=1", "data.eval_limit=8")
    assert any("too few for an interval" in event["text"] for event in events(run, "warning"))
    assert not events(run, "stop")


# ---------------------------------------------------------------- pairs


def pairs_in(run: Path, phase: str) -> Rows[Pair]:
    return Rows([run / "0" / phase / "pairs.arrow"], Pair)


def test_pairs_are_left_out_counted_and_said(tmp_path: Path) -> None:
    run = played(tmp_path, "scorer=validity", "selfplay.keep_pairs=better", "selfplay.samples=3")
    before, kept = pairs_in(run, "pairs"), pairs_in(run, "kept")
    facts = json.loads((run / "0/kept/phase.json").read_text())["facts"]
    answers = sum(len(pair.synthetic_ids) for pair in before)
    assert facts["answers"] == answers
    assert facts["left_out"] == answers - sum(len(pair.synthetic_ids) for pair in kept)
    assert 0 < facts["left_out"] < answers
    assert facts["pairs"] == len(kept)
    sizes = {len(pair.synthetic_ids) for pair in kept}
    assert len(sizes) > 1  # pairs that have lost some of their answers are learnt from
    known = {pair.key: pair for pair in before}
    for pair in kept:
        old = known[pair.key]
        scored = zip(old.synthetic_ids, old.opponent_synthetic, strict=True)
        assert all(one in scored for one in zip(pair.synthetic_ids, pair.opponent_synthetic, strict=True))
    said = f"{facts['left_out']} of {answers} synthetic answers were left out"
    assert any(said in line for line in warnings_of(read_run(run)))


def test_pairs_with_fewer_answers_have_the_gradient_of_each_alone(tmp_path: Path) -> None:
    keys = ("scorer=validity", "selfplay.keep_pairs=better", "selfplay.samples=3")
    run = played(tmp_path, *keys)
    with lab.session(tmp_path, *SHORT, *keys) as session:
        start = session.once("sft", fine_tune, session.once("data", prepare_data))
        rows = pairs_in(run, "kept")
        sizes = [len(pair.synthetic_ids) for pair in rows]
        items = [sizes.index(size) for size in sorted(set(sizes))] + [len(rows) - 1, len(rows) - 2]
        session.ring.challenge(session.player(start), seed=1)
        made = lab.task(session, rows)
        assert sorted(item for batch in made.split(items) for item in batch) == sorted(items)
        assert all(len({sizes[item] for item in batch}) == 1 for batch in made.split(items))
        alone = {item: lab.gradients(session, made, [item]) for item in items}
        for batch in made.split(items):
            loss, together = lab.gradients(session, made, batch)
            assert loss == pytest.approx(sum(alone[item][0] for item in batch) / len(batch), rel=1e-6)
            for name, gradient in together.items():
                mean = torch.stack([alone[item][1][name] for item in batch]).mean(dim=0)
                torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-6)


def test_with_no_pair_left_self_play_ends(tmp_path: Path) -> None:
    """A scorer that says the same of every answer puts none below another."""
    run = played(tmp_path, 'scorer={name: regex, pattern: "never"}', "selfplay.keep_pairs=better")
    assert best(run)["player"] == "sft"
    assert not (run / "0" / "player").exists()
    assert any("nothing is left to learn from, so self-play ends here" in e["text"] for e in events(run, "warning"))


@pytest.mark.parametrize("negatives", ["none", "shuffled"])
def test_controls_that_no_scorer_may_put_right_keep_all(tmp_path: Path, negatives: str) -> None:
    run = played(tmp_path, "scorer=validity", "selfplay.keep_pairs=better", f"selfplay.negatives={negatives}")
    assert not (run / "0" / "kept").exists()
    assert (run / "0" / "player").exists()
