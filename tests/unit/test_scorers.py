"""Scorers: each in the table, what they say, and one sentence for each thing that can be wrong."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import base_of, make_player, random_rows, ring_of

from sparring.configfile import build_config
from sparring.errors import ConfigError, ModelError, RewardError
from sparring.files import write_atomic
from sparring.laboratory import base_folder, world
from sparring.models.base import load_renderer
from sparring.models.player import ABOUT, Player
from sparring.models.reward_head import RewardHead, reward
from sparring.models.scoring import score
from sparring.rewards.build import SCORERS, check_scorer, make_scorer
from sparring.rewards.model import find_reward, save_reward
from sparring.rewards.scorer import Answered, finite
from sparring.rewards.settings import SETTINGS, ScorerSettings


def scorer_of(**settings: Any) -> ScorerSettings:
    found = build_config({"scorer": settings}).scorer
    assert found is not None
    return found


@pytest.fixture(scope="module")
def renderer():
    return load_renderer(base_folder(), build_config({}).model)


def said(renderer, prompt: str, answer: str, real: str = "", ended: bool = True) -> Answered:
    def ids(text: str) -> list[int]:
        return list(renderer.tokenizer(text, add_special_tokens=False).input_ids)

    end = [renderer.tokenizer.eos_token_id]
    return Answered(ids(prompt), ids(answer) + end * ended, ids(real) + end if real else [])


class Seat:
    """What text scorers need of a ring."""

    def __init__(self, renderer) -> None:
        self.base = type("Base", (), {"renderer": renderer})


def test_the_table_holds_every_settings_section():
    assert {row.settings for row in SCORERS.values()} == set(SETTINGS)
    for name, row in SCORERS.items():
        assert row.settings.model_fields["name"].default == name


def test_a_name_is_enough():
    assert build_config({"scorer": "validity"}).scorer == scorer_of(name="validity")
    assert build_config({}, ["scorer=match"]).scorer == scorer_of(name="match")


# ---------------------------------------------------------------- rules


def test_validity(renderer):
    prompt = "1+2+3="
    good = next(iter(world.answers(prompt)))
    scorer = make_scorer(scorer_of(name="validity"), Seat(renderer))
    rows = [said(renderer, prompt, good), said(renderer, prompt, good, ended=False), said(renderer, prompt, "1+2=4")]
    assert scorer(rows) == [1.0, 0.0, 0.0]
    with pytest.raises(RewardError, match="knows only the laboratory's prompts"):
        scorer([said(renderer, "1+2=", good)])


def test_match_and_regex(renderer):
    rows = [said(renderer, "1+2+3=", "1+2=3;3+3=6", "2+3=5;5+1=6"), said(renderer, "1+2+3=", "1+2=3;3+3=7", "3;6")]
    assert make_scorer(scorer_of(name="match"), Seat(renderer))(rows) == [0.0, 0.0]
    assert make_scorer(scorer_of(name="match", match="last_number"), Seat(renderer))(rows) == [1.0, 0.0]
    assert make_scorer(scorer_of(name="match", match=r"=(\d)$"), Seat(renderer))(rows) == [1.0, 0.0]
    assert make_scorer(scorer_of(name="regex", pattern="=7"), Seat(renderer))(rows) == [0.0, 1.0]
    assert make_scorer(scorer_of(name="regex", pattern="=7", whole=True), Seat(renderer))(rows) == [0.0, 0.0]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's in the working folder; gone again after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(code: str) -> None:
        sys.modules.pop("my_rewards", None)
        (tmp_path / "my_rewards.py").write_text(code)
        for stale in tmp_path.glob("__pycache__/*"):
            stale.unlink()

    yield write
    sys.modules.pop("my_rewards", None)


def test_a_function_of_the_users_own(renderer, module):
    module("def short(prompt, answer, real):\n    return -len(answer) + (answer == real)\n")
    settings = scorer_of(name="function", path="my_rewards:short")
    scorer = make_scorer(settings, Seat(renderer))
    rows = [said(renderer, "1+2+3=", "1+2", "1+2"), said(renderer, "1+2+3=", "1", "2")]
    assert scorer(rows) == [-2.0, -1.0]
    assert scorer.label == 'scorer function "my_rewards:short"'
    before = scorer.fingerprint
    assert check_scorer(settings, renderer, "base") == before
    module("def short(prompt, answer, real):\n    return 1\n")
    assert make_scorer(settings, Seat(renderer)).fingerprint != before  # its code is what counts


@pytest.mark.parametrize("number", ["random.random()", "len(seen)", "sum(seen) / len(seen)"])
def test_a_function_must_give_the_same_answer_the_same_number(renderer, module, number):
    module(
        f"import random\nseen = []\ndef f(prompt, answer, real):\n    seen.append(len(answer))\n    return {number}\n"
    )
    scorer = make_scorer(scorer_of(name="function", path="my_rewards:f"), Seat(renderer))
    rows = [said(renderer, "1+2+3=", "1+2"), said(renderer, "1+2+3=", "1")]
    wanted = r'^scorer function "my_rewards:f" gave \S+ and then \S+ for the same answer, and must give the same answer'
    with pytest.raises(RewardError, match=wanted):
        scorer(rows)


def test_eight_answers_are_asked_about_twice_and_no_more(renderer, module):
    module("seen = []\ndef f(prompt, answer, real):\n    seen.append(answer)\n    return len(answer)\n")
    scorer = make_scorer(scorer_of(name="function", path="my_rewards:f"), Seat(renderer))
    row = said(renderer, "1+2+3=", "1+2")
    for rows, asked in ((6, 12), (20, 34), (20, 54)):
        assert scorer([row] * rows) == [3.0] * rows
        assert len(sys.modules["my_rewards"].seen) == asked


@pytest.mark.parametrize("made", ["functools.partial(base, scale=2)", "Weigher()", "functools.partial(Weigher())"])
def test_partials_and_objects_have_the_content_of_their_module(renderer, module, made):
    code = """import functools
def base(prompt, answer, real, scale=1): return scale * len(answer)
class Weigher:
    def __call__(self, prompt, answer, real): return 1
"""
    settings, prints = scorer_of(name="function", path="my_rewards:found"), []
    for scale in ("2", "2", "3"):
        module(f"{code}\nfound = {made}\nother = {scale}\n")
        prints.append(check_scorer(settings, renderer, "base"))
    assert prints[0] == prints[1] != prints[2]


def test_what_has_no_file_is_refused(renderer):
    with pytest.raises(RewardError, match=r'^scorer function "builtins:max" has no file whose content says what it is'):
        check_scorer(scorer_of(name="function", path="builtins:max"), renderer, "base")


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ("float('nan')", "gave nan for an answer, and every score must be finite"),
        ("float('-inf')", "gave -inf for an answer, and every score must be finite"),
        ("10**400", "gave 0x[0-9a-f]*... for an answer, and scores beyond .* cannot be compared; scale them down$"),
        ("10**9999", "gave 0x[0-9a-f]*... for an answer, and scores beyond .* cannot be compared"),
        ("-1e308", "gave -1e.308 for an answer, and scores beyond .* cannot be compared; scale them down$"),
        ("'good'", "gave 'good' for an answer, and must give a number"),
        ("None", "gave None for an answer, and must give a number"),
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_function_may_not_do(renderer, module, returns, message):
    module(f"def f(prompt, answer, real):\n    return {returns}\n")
    scorer = make_scorer(scorer_of(name="function", path="my_rewards:f"), Seat(renderer))
    with pytest.raises(RewardError, match=f'^scorer function "my_rewards:f" {message}'):
        scorer([said(renderer, "1+2+3=", "1+2")])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_at_all:f", "cannot be imported .No module named"),
        ("my_rewards:g", "cannot be imported .*has no attribute 'g'"),
        ("my_rewards:number", "is a int; give a function .prompt, answer, real."),
        ("broken_rewards:f", "cannot be imported .RuntimeError: not today"),
    ],
)
def test_functions_that_are_not_there(renderer, module, path, message):
    module("number = 3\n")
    Path("broken_rewards.py").write_text("raise RuntimeError('not today')\n")
    with pytest.raises(RewardError, match=f'^scorer function "{path}" {message}'):
        check_scorer(scorer_of(name="function", path=path), renderer, "base")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "regex", "pattern": "("}, 'scorer.pattern "[(]" is not a regular expression'),
        ({"name": "match", "match": "["}, 'scorer.match "\\[" is not a regular expression'),
        ({"name": "function", "path": "os.system"}, 'scorer.path "os.system" is not an import path'),
        ({"name": "function", "path": "a:b(c)"}, "is not an import path"),
        ({"name": "regexp"}, 'scorer.name "regexp" is not known; did you mean "regex"'),
        ({"name": "regex"}, "scorer.pattern"),
        ({"name": "validity", "r": 3}, 'key "scorer.r" is not known'),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        scorer_of(**settings)


def test_a_number_is_any_finite_one():
    import numpy as np

    assert [finite("x", value) for value in (True, 2, np.float32(0.5), np.int64(3))] == [1.0, 2.0, 0.5, 3.0]
    for value in (math.nan, math.inf, "1", [1.0]):
        with pytest.raises(RewardError):
            finite("x", value)


# ---------------------------------------------------------------- models


def answers_of(vocabulary: int) -> list[Answered]:
    return [Answered(prompt, ids, []) for prompt, ids in random_rows(vocabulary, 5, 6)]


def run_of(folder: Path, ring) -> Path:
    """What scorers read of a run: θ_0, θ_1, and which is best."""
    folder.mkdir()
    (folder / "run.lock.yaml").write_text("{}")
    start = make_player(ring, Player.untrained(ring.base), folder, "sft", 1)
    make_player(ring, start, folder, "0/player", 2)
    (folder / "best").mkdir()
    write_atomic(folder / "best" / "best.json", json.dumps({"player": "0"}))
    return folder


def test_the_implicit_reward(tmp_path):
    ring = ring_of(base_of("llama"))
    run = run_of(tmp_path / "run", ring)
    answers = answers_of(ring.base.vocabulary)
    rows = [(a.prompt_ids, a.ids) for a in answers]
    by_hand = [score(ring.seat(Player.load(run / name)), ring.base, rows, 8192) for name in ("0/player", "sft")]
    wanted = [0.5 * (a - b) for a, b in zip(*by_hand, strict=True)]
    settings = scorer_of(name="implicit", run=str(run), beta=0.5)
    scorer = make_scorer(settings, ring)
    assert scorer(answers) == pytest.approx(wanted, abs=1e-4)
    assert max(map(abs, wanted)) > 0.1
    assert scorer.fingerprint == check_scorer(settings, ring.base.renderer, ring.base.fingerprint)
    assert str(tmp_path) not in scorer.label
    mean = make_scorer(scorer_of(name="implicit", run=str(run), beta=0.5, reduction="mean"), ring)
    assert mean(answers) == pytest.approx([w / len(a.ids) for w, a in zip(wanted, answers, strict=True)], abs=1e-4)
    assert mean.fingerprint != scorer.fingerprint
    base = make_scorer(scorer_of(name="implicit", run=str(run), player="sft", reference="base"), ring)
    assert base(answers) != pytest.approx(wanted, abs=1e-2)
    assert scorer([]) == []


def test_implicit_rewards_that_cannot_be(tmp_path):
    ring = ring_of(base_of("llama"))
    run = run_of(tmp_path / "run", ring)

    def check(base: str = ring.base.fingerprint, **settings: Any) -> None:
        check_scorer(scorer_of(name="implicit", **{"run": str(run), **settings}), ring.base.renderer, base)

    check()
    with pytest.raises(RewardError, match="is no run; give a run's folder"):
        check(run=str(tmp_path))
    with pytest.raises(RewardError, match="both sft, so every score would be 0"):
        check(player="sft")
    with pytest.raises(RewardError, match="both 0, so every score would be 0"):
        check(reference="0")
    with pytest.raises(RewardError, match='no player "7"'):
        check(player="7")
    with pytest.raises(RewardError, match="stands on another base or tokenizer"):
        check(base="other")


def reward_model(folder: Path, ring, seed: int = 1) -> tuple[Path, RewardHead]:
    """A reward model as `sparring reward` leaves it, without training."""
    player = make_player(ring, Player.untrained(ring.base), folder, "reward", seed)
    head = RewardHead(torch.randn(32, generator=torch.Generator().manual_seed(seed)))
    save_reward(folder / "reward", ring.base.renderer, player, head)
    return folder, head


def test_a_reward_model_is_a_scorer(tmp_path):
    ring = ring_of(base_of("llama"))
    run, head = reward_model(tmp_path / "run", ring)
    answers = answers_of(ring.base.vocabulary)
    rows = [(a.prompt_ids, a.ids) for a in answers]
    wanted = reward(ring.seat(Player.load(run / "reward")), ring.base, head, rows, 8192)
    for path in (run, run / "reward"):
        scorer = make_scorer(scorer_of(name="model", path=str(path)), ring)
        ring.seat(Player.untrained(ring.base))  # another's turn
        assert scorer(answers) == pytest.approx(wanted, abs=1e-5)
    assert scorer.label == "reward model run"
    assert scorer.fingerprint == check_scorer(
        scorer_of(name="model", path=str(run)), ring.base.renderer, ring.base.fingerprint
    )
    assert scorer.fingerprint != find_reward(reward_model(tmp_path / "other", ring, 2)[0]).fingerprint
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in run.rglob("*"))


def test_reward_models_that_do_not_fit(tmp_path):
    ring = ring_of(base_of("llama"))
    run, head = reward_model(tmp_path / "run", ring)
    settings = scorer_of(name="model", path=str(run))
    with pytest.raises(RewardError, match="is no reward model"):
        make_scorer(scorer_of(name="model", path=str(tmp_path)), ring)
    (tmp_path / "half" / "reward.partial").mkdir(parents=True)
    with pytest.raises(RewardError, match="is not finished"):
        make_scorer(scorer_of(name="model", path=str(tmp_path / "half")), ring)
    with pytest.raises(RewardError, match="stands on another base or tokenizer"):
        make_scorer(settings, ring_of(base_of("llama", seed=1)))
    about = run / "reward" / "reward.json"
    known = json.loads(about.read_text())
    about.write_text(json.dumps({**known, "template": "other"}))
    with pytest.raises(RewardError, match="learnt with another chat template"):
        make_scorer(settings, ring)
    about.write_text(json.dumps({**known, "player": "other"}))
    with pytest.raises(RewardError, match="were not made together"):
        make_scorer(settings, ring)
    about.write_text(json.dumps(known))
    player = json.loads((run / "reward" / ABOUT).read_text())
    save_reward(run / "reward", ring.base.renderer, Player.load(run / "reward"), RewardHead(head.weight * math.nan))
    with pytest.raises(RewardError, match="gave nan for an answer"):
        make_scorer(settings, ring)(answers_of(ring.base.vocabulary))
    assert player["base"] == ring.base.fingerprint
    (run / "reward" / "head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="is damaged"):
        make_scorer(settings, ring)


def test_older_runs_can_go_on():
    """Without these sections a config decides what it decided before they were there."""
    from sparring.config import decisive

    assert not {"reward", "scorer"} & set(decisive(build_config({})))
    plain = decisive(build_config({}))
    assert decisive(build_config({"scorer": "validity", "reward": {"epochs": 2}})) == plain
