"""Learning from rewards, killed at any point and gone on with, ends in the bytes of a run that was never killed."""

from __future__ import annotations

import json
import random
import signal

from sparring.allowance import spent_on_play
from tests.trajectory.arena import KILLED, Arena, Result, assert_same, assert_same_but_command, contents

SETTINGS = {
    "data__train": "laboratory",
    "data__split": "[:24]",
    "data__eval_limit": 12,
    "data__eval_size": None,
    "reinforce": {"iterations": 2, "samples": 3, "prompts": 16, "batch_size": 4, "lr": 1e-3, "epochs": 2},
}
VERB = ("reinforce", "config.yaml")


def make(arena) -> Arena:
    settings = {key: value for key, value in SETTINGS.items() if value is not None}
    return arena(**settings)


def reinforced(place: Arena, **job) -> Result:
    return place.go(*VERB, **job)


def test_killed_before_every_renaming(arena):
    whole = make(arena)
    result = reinforced(whole)
    assert result.code == 0, result.err
    wanted = contents(whole.run)
    assert {"0/played", "0/rewards", "1/scored", "1/player", "1/scores", "best"} <= set(wanted)
    place = make(arena)
    for _ in range(1000):
        result = reinforced(place, at="chain", act="kill", kinds=["rename", "mkdir"])
        if result.code == 0:
            break
        assert result.code == KILLED, (place.history[-1], result.err)
    assert len(place.history) > 60
    assert_same(contents(place.run), wanted)


def test_killed_at_random_times(arena):
    whole, place, drawn = make(arena), make(arena), random.Random(4)
    assert reinforced(whole).code == 0
    for phase in ("sft", "0/played", "0/rewards", "0/scored", "0/player", "1/scored", "1/player", "1/scores"):
        line, delay = f'"event": "start", "phase": "{phase}"', drawn.uniform(0, 0.2)
        result = place.go(*VERB, "--json", line=line, delay=delay, signal=signal.SIGKILL)
        assert result.code in (KILLED, 0), result.err
    assert reinforced(place).code == 0
    assert_same_but_command(contents(place.run), contents(whole.run))


def test_killed_within_a_budget(arena):
    """As many prompts are asked and as many passes made as in a run that was never killed."""
    free = make(arena)
    assert reinforced(free).code == 0
    amount = 0.8 * spent_on_play(free.run, 2)["flops"]
    section = {key: value for key, value in SETTINGS["reinforce"].items() if key != "prompts"}
    settings = {**SETTINGS, "reinforce": section, "selfplay__budget": {"unit": "flops", "amount": amount}}
    del settings["data__eval_size"]
    whole, place, drawn = arena(**settings), arena(**settings), random.Random(5)
    assert reinforced(whole).code == 0
    for phase in ("0/played", "0/player", "1/played", "1/player"):
        line, delay = f'"event": "start", "phase": "{phase}"', drawn.uniform(0, 0.1)
        result = place.go(*VERB, "--json", line=line, delay=delay, signal=signal.SIGKILL)
        assert result.code in (KILLED, 0), result.err
    assert reinforced(place).code == 0
    assert_same_but_command(contents(place.run), contents(whole.run))
    assert spent_on_play(place.run, 2)["flops"] == spent_on_play(whole.run, 2)["flops"] < 1.1 * amount


def test_a_run_of_self_play_is_resumable_as_before(arena):
    """The new section changes nothing of what older run folders were made with."""
    place = arena(selfplay__iterations=1)
    assert place.go().code == 0
    lock = (place.run / "run.lock.yaml").read_text()
    assert "reinforce" not in lock.split("same:")[1]
    assert place.go().code == 0


def test_one_verb_does_not_go_on_with_the_others_run(arena):
    place = make(arena)
    assert place.go("run", "config.yaml").sentence.startswith("the section reinforce is for another verb")
    assert reinforced(place).code == 0
    changed = {key: value for key, value in SETTINGS.items() if value is not None}
    place.config(**{**changed, "reinforce": {**changed["reinforce"], "samples": 4}})
    assert "was made with reinforce.samples: 3, now it is 4" in reinforced(place).sentence
    page = (place.run / "report.html").read_text()
    assert "Reward and likelihood" in page
    assert "SPIN loss" not in page
    events = [json.loads(line) for line in (place.run / "metrics.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "reward" for event in events) == 4


def test_two_processes_learn_as_one(arena):
    alone, place = make(arena), make(arena)
    for each in (alone, place):
        settings = {key: value for key, value in SETTINGS.items() if value is not None}
        each.config(**settings, method__dropout=0.0, sft__epochs=0, generation__shard_size=5)
    assert reinforced(alone).code == 0
    result = reinforced(place, processes=2)
    assert result.code == 0, result.err
    for name in ("0/rewards/rewards.arrow", "0/scored/groups.arrow"):
        assert (place.run / name).read_bytes() == (alone.run / name).read_bytes(), name
    for run in (alone.run, place.run):
        assert (run / "best/best.json").exists()
    rewards = [json.loads((each.run / "best/best.json").read_text())["values"] for each in (alone, place)]
    assert rewards[0].keys() == rewards[1].keys()
