"""Reinforcement learning on the laboratory: what must hold at run time, and that breaking it stops the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring.data.pairs import Group, Played, Rewarded, Rows, write_rows
from sparring.errors import ConfigError, LawBroken, RewardError
from sparring.evaluation.valued import alarms, judge_valued
from sparring.folder import read_lines
from sparring.generation.play import played_rows
from sparring.improving import improve
from sparring.kinds import kind_of
from sparring.laboratory import world
from sparring.learning import fine_tune
from sparring.objectives.policy_gradient import advantages
from sparring.policy_task import PolicyTask
from sparring.preparing import prepare_data
from sparring.reinforce import reinforce, settled_reinforce
from sparring.rewarding import (
    _check_centred,
    play_groups,
    reward,
    score_groups,
    scorer_print,
    settings_of,
    wanted_scorer,
    worth,
)
from sparring.rewards.scorer import LARGEST, Answered
from sparring.rewards.text import TextScorer
from sparring.run import Phase
from sparring.session import Session
from tests.laws import lab

SMALL = ["reinforce.samples=4", "reinforce.lr=2e-3", "reinforce.batch_size=8", "reinforce.iterations=2"]


class Game:
    """The phases of a run, one by one, as `reinforce` calls them."""

    def __init__(self, session: Session) -> None:
        self.session, self.scorer = session, scorer_print(session)
        self.data = session.once("data", prepare_data)
        self.start = session.once("sft", fine_tune, self.data)

    def scored(self, player: Phase, t: int) -> tuple[Phase, Phase, Phase]:
        """(played, rewards, scored) of an iteration."""
        once = self.session.once
        played = once(f"{t}/played", play_groups, self.data, player, iteration=t)
        rewards = once(f"{t}/rewards", reward, played, scorer=self.scorer)
        return played, rewards, self.score(player, played, rewards, t)

    def score(self, player: Phase, played: Phase, rewards: Phase, t: int) -> Phase:
        """The groups of an iteration."""
        given = (self.data, player, self.start, played, rewards)
        return self.session.once(f"{t}/scored", score_groups, *given, iteration=t)

    def learnt(self, player: Phase, scored: Phase, t: int) -> Phase:
        """The next player."""
        return self.session.once(f"{t}/player", improve, player, scored, self.data, iteration=t)


@pytest.fixture
def game(tmp_path: Path) -> Iterator[Game]:
    with lab.session(tmp_path, *SMALL) as session:
        yield Game(session)


def groups_of(phase: Phase) -> Rows[Group]:
    return Rows([phase.folder / "groups.arrow"], Group)


def task_of(game: Game, rows: Rows[Group], **changes: Any) -> PolicyTask:
    settings = settings_of(game.session).model_copy(update=changes)
    return PolicyTask(game.session.ring.base, rows, settings, 16, 4096)


def test_the_first_step_has_the_known_loss_and_the_policy_gradient(game: Game) -> None:
    """At ratio 1 the loss is -mean(A) over tokens, its gradient that of -A·log p, and KL to theta_0 is 0."""
    _, _, scored = game.scored(game.start, 0)
    rows, ring = groups_of(scored), game.session.ring
    ring.challenge(game.session.player(game.start), seed=1)
    items = list(range(min(6, len(rows))))
    task = task_of(game, rows, beta=0.5)
    loss, metrics = task.loss(ring.model, items)
    terms = [(a, len(ids)) for i in items for a, ids in zip(rows[i].advantages, rows[i].answer_ids, strict=True)]
    known = -sum(a * n for a, n in terms) / sum(n for _, n in terms)
    assert loss.item() / task.weight(items) == pytest.approx(known, abs=1e-4)
    assert metrics["kl"][0] == pytest.approx(0, abs=1e-5)
    assert metrics["clipped"][0] == 0
    loss.backward()
    mine = {name: p.grad.clone() for name, p in ring.trainable().items() if p.grad is not None}
    ring.model.zero_grad()
    from sparring.models.scoring import answer_tokens
    from sparring.policy_task import group_rows

    logprob_N, tokens_A = answer_tokens(ring.model, ring.base, [row for i in items for row in group_rows(rows[i])])
    advantage_A = torch.tensor([a for a, _ in terms], dtype=torch.float64)
    (-(advantage_A.repeat_interleave(tokens_A) * logprob_N).sum()).backward()
    for name, parameter in ring.trainable().items():
        if parameter.grad is not None and name in mine:
            assert torch.allclose(mine[name], parameter.grad, atol=1e-3 * float(parameter.grad.abs().max() + 1e-6)), (
                name
            )


def test_a_group_of_equal_rewards_has_exactly_no_gradient(game: Game, tmp_path: Path) -> None:
    _, _, scored = game.scored(game.start, 0)
    rows = groups_of(scored)
    flat = [replace(row, advantages=[0.0] * len(row.advantages)) for row in rows[:3]]
    write_rows(tmp_path / "flat.arrow", flat, Group)
    game.session.ring.challenge(game.session.player(game.start), seed=1)
    loss, _ = task_of(game, Rows([tmp_path / "flat.arrow"], Group), beta=0.0).loss(game.session.ring.model, [0, 1, 2])
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in game.session.ring.trainable().values() if p.grad is not None)


def test_groups_of_equal_rewards_are_skipped_and_counted(game: Game) -> None:
    played, rewards, scored = game.scored(game.start, 0)
    given = Rows([rewards.folder / "rewards.arrow"], Rewarded)[:]
    equal = sum(len(set(row.rewards)) == 1 for row in given)
    assert 0 < equal < len(given), "or this shows nothing"
    assert scored.facts["skipped"] == equal
    assert scored.facts["groups"] == len(groups_of(scored)) == len(given) - equal
    for row in groups_of(scored)[:]:
        assert abs(sum(row.advantages)) < 1e-9
        assert [len(ids) for ids in row.answer_ids] == [len(tokens) for tokens in row.sampled]
    assert len(played_rows(played.folder)) == len(given)


def test_after_the_first_iteration_theta_0_is_scored_apart(game: Game) -> None:
    _, _, scored = game.scored(game.start, 0)
    player = game.learnt(game.start, scored, 0)
    _, _, again = game.scored(player, 1)
    first, second = groups_of(scored)[0], groups_of(again)[0]
    assert first.sampled == first.start
    assert second.sampled != second.start
    assert sorted(path.name for path in again.folder.glob("*.arrow")) == ["groups.arrow"]


def test_other_weights_break_the_ratio(game: Game) -> None:
    _, _, scored = game.scored(game.start, 0)
    ring = game.session.ring
    ring.challenge(game.session.player(game.start), seed=1)
    with torch.no_grad():
        for parameter in ring.trainable().values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    task = task_of(game, groups_of(scored))
    _, metrics = task.loss(ring.model, list(range(4)))
    means = {name: value / count for name, (value, count) in metrics.items()}
    with pytest.raises(LawBroken, match=r"law 1: at the first step .* so the ratio is not 1"):
        task.inspect(1, dict(means))
    task.inspect(2, dict(means))


def test_answers_that_were_changed_are_refused(game: Game) -> None:
    played, rewards, _ = game.scored(game.start, 0)
    rows = played_rows(played.folder)[:]
    wrong = [replace(row, logprobs=[value - 3 for value in row.logprobs]) for row in rows]
    for shard in played.folder.glob("shard-*.arrow"):
        shard.unlink()
    write_rows(played.folder / "shard-00000.arrow", wrong, Played)
    given = (game.data, game.start, game.start, played, rewards)
    with pytest.raises(
        LawBroken, match="law 5: the answers' log-probs when they were sampled and when they are scored"
    ):
        game.session.once("9/scored", score_groups, *given, iteration=0)


def test_another_players_answers_are_refused(game: Game) -> None:
    played, rewards, scored = game.scored(game.start, 0)
    player = game.learnt(game.start, scored, 0)
    given = (game.data, player, game.start, played, rewards)
    with pytest.raises(LawBroken, match="law 11: these answers were played by"):
        game.session.once("9/scored", score_groups, *given, iteration=0)
    with pytest.raises(LawBroken, match="law 11: the groups were scored by"):
        game.session.once("9/player", improve, player, scored, game.data, iteration=0)


# ---------------------------------------------------------------- a whole run


def test_reward_rises_and_the_best_is_chosen_by_it(tmp_path: Path) -> None:
    settings = [
        'data.split="[:120]"',
        "data.eval_limit=40",
        "sft.epochs=3",
        "evaluation.samples=4",
        "reinforce.samples=8",
    ]
    with lab.session(tmp_path, *SMALL, *settings, "reinforce.iterations=3") as session:
        best = reinforce(session)
        events = [json.loads(line) for line in (session.run.folder / "metrics.jsonl").read_text().splitlines()]
    rewards = {event["player"]: event["reward"] for event in events if event["event"] == "reward"}
    chosen = json.loads((best.folder / "best.json").read_text())
    assert chosen["metric"] == "reward"
    assert rewards[chosen["player"]] == max(value for name, value in rewards.items() if name != "base")
    assert chosen["player"] != "sft"
    steps = [event for event in events if event["event"] == "step" and "kl" in event]
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["kl"] > 0.001


def test_another_metric_may_choose(tmp_path: Path) -> None:
    with lab.session(tmp_path, *SMALL, "reinforce.select=nll", "reinforce.prompts=16") as session:
        best = reinforce(session)
    chosen = json.loads((best.folder / "best.json").read_text())
    assert chosen["metric"] == "nll"
    assert chosen["value"] == min(chosen["values"].values())
    assert len(chosen["values"]) == 3


def test_what_chooses_counts_only_where_it_is_not_the_scorer(tmp_path: Path) -> None:
    """So a run folder that was made before there was a choice can be gone on with."""
    usual, other = (lab.config(tmp_path, *SMALL, f"reinforce.select={name}") for name in ("scorer", "nll"))
    assert "select" not in kind_of(usual).decides(usual)["reinforce"]
    assert kind_of(other).decides(other)["reinforce"]["select"] == "nll"
    with pytest.raises(ConfigError, match=r'reinforce\.select is "match", but evaluation\.match does not say'):
        lab.config(tmp_path, "reinforce.select=match")


def test_kl_ends_an_iteration(tmp_path: Path) -> None:
    with lab.session(tmp_path, *SMALL, "reinforce.kl_limit=0.001", "reinforce.iterations=1") as session:
        reinforce(session)
        stopped = json.loads((session.run.folder / "0/player/phase.json").read_text())["facts"]["stopped"]
    assert stopped.startswith("KL to θ_0 is ")


def test_with_equal_rewards_everywhere_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextScorer, "__call__", lambda self, answers: [1.0] * len(answers))
    with lab.session(tmp_path, *SMALL) as session:
        best = reinforce(session)
        log = (session.run.folder / "metrics.jsonl").read_text()
        assert not (session.run.folder / "0/player").exists()
    assert best.facts["player"] == "sft"
    assert "nothing is left to learn from" in log


def test_without_a_baseline_groups_of_zeros_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They pay KL, and are in the divisor: nothing is skipped."""
    monkeypatch.setattr(TextScorer, "__call__", lambda self, answers: [0.0] * len(answers))
    with lab.session(tmp_path, *SMALL, "reinforce.algorithm=reinforce", "reinforce.beta=0.5") as session:
        game = Game(session)
        played, _, scored = game.scored(game.start, 0)
        rows = groups_of(scored)
        assert (scored.facts["groups"], scored.facts["skipped"]) == (len(rows), 0)
        assert len(rows) == len(played_rows(played.folder))
        assert all(not any(row.advantages) for row in rows[:])
        task = task_of(game, rows)
        assert task.weight([0, 1]) == sum(len(ids) for row in rows[:2] for ids in row.answer_ids)
        session.ring.challenge(session.player(game.start), seed=1)
        with torch.no_grad():
            for parameter in session.ring.trainable().values():
                parameter.add_(0.05)  # away from theta_0, so that KL is above 0
        loss, metrics = task.loss(session.ring.model, [0, 1])
    assert metrics["policy_loss"][0] == 0
    assert loss.item() == pytest.approx(0.5 * metrics["kl"][0], rel=1e-5)
    assert loss.item() > 0


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce"])
def test_every_algorithm_learns(algorithm: str, tmp_path: Path) -> None:
    with lab.session(tmp_path, *SMALL, f"reinforce.algorithm={algorithm}", "reinforce.prompts=20") as session:
        reinforce(session)
        facts = json.loads((session.run.folder / "1/scored/phase.json").read_text())["facts"]
        drawn = [played_rows(session.run.folder / f"{t}/played")[0].key for t in (0, 1)]
    assert facts["groups"] + facts["skipped"] == 20
    assert drawn[0] != drawn[1], "prompts are drawn anew"


# ---------------------------------------------------------------- guard rails and bad input


def facts(**changes: Any) -> dict[str, Any]:
    zero = {"mean": 0.0, "low": -1.0, "high": 1.0}
    usual = {"kl_start": 1.0, "length": 10.0, "entropy": 1.0, "reward_difference": zero, "nll_difference": zero}
    return usual | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl_start": 11.0}, "KL to θ_0 is 11.0 nats per answer"),
        ({"length": 16.0}, "pleased by long answers"),
        ({"length": 6.0}, "pleased by short answers"),
        ({"entropy": 0.2}, "entropy collapsed to 0.200"),
        (
            {
                "reward_difference": {"mean": 0.2, "low": 0.1, "high": 0.3},
                "nll_difference": {"mean": 0.05, "low": 0.02, "high": 0.08},
            },
            "reward rose by 0.200 [0.100, 0.300] while held-out NLL of real answers rose by 0.0500",
        ),
    ],
)
def test_alarms(game: Game, changes: dict[str, Any], said: str) -> None:
    settings = settings_of(game.session)
    assert alarms(settings, "θ_1", facts(), facts()) == []
    found = alarms(settings, "θ_1", facts(**changes), facts())
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    ("values", "said"),
    [([float("nan")], "gave nan for an answer"), ([1.0, 2.0], "gave 2 scores"), ([-1e308], "gave -1e.308 for")],
)
def test_a_scorer_that_gives_no_number_is_named(values: list[float], said: str) -> None:
    class Odd:
        label = "odd"

        def __call__(self, answers: Any) -> list[float]:
            return values

    with pytest.raises(RewardError, match=said):
        worth(Odd(), [Answered([1], [2], [3])])


def test_advantages_that_are_nan_break_the_law() -> None:
    with pytest.raises(LawBroken, match="a reward is too large to be compared"):
        _check_centred(advantages(torch.tensor([[1e308, 1e308, -1e308], [1, 0, 0]], dtype=torch.float64), "rloo"))


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_largest_scores_can_be_compared(algorithm: str) -> None:
    every = torch.tensor([[LARGEST, LARGEST, -LARGEST], [1, 0, 0]], dtype=torch.float64)
    _check_centred(advantages(every, algorithm))


def test_what_cannot_be_learnt_so_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="learns from samples of the player itself"):
        settled_reinforce(lab.config(tmp_path, "generation.temperature=0.7"))
    with pytest.raises(ConfigError, match="compares the answers of a group"):
        lab.config(tmp_path, "reinforce.samples=1")
    with pytest.raises(ConfigError, match="validity is known only in the laboratory"):
        wanted_scorer(lab.config(tmp_path, "data.render=chat", "scorer=validity"))
    with pytest.raises(ConfigError, match=r"give scorer .*, or evaluation\.match"):
        wanted_scorer(lab.config(tmp_path, "data.render=chat"))
    assert wanted_scorer(lab.config(tmp_path)).name == "validity"
    assert wanted_scorer(lab.config(tmp_path, "data.render=chat", "evaluation.match=whole")).name == "match"


def test_held_out_reward_has_an_interval(game: Game) -> None:
    once, label = game.session.once, game.session.first
    first = once("sft-scores", judge_valued, game.data, game.start, game.start, None, label=label, scorer=game.scorer)
    assert 0 <= first.facts["reward"] <= 1
    lines = (first.folder / "rewards.jsonl").read_text().splitlines()
    assert len(lines) == len(game.session.prompts(game.data, "eval"))


@pytest.mark.parametrize("stop", ["nll", "scorer"])
def test_rows_that_repeat_three_prompts_have_no_interval(stop: str, tmp_path: Path) -> None:
    prompts = [row["prompt"] for row in world.rows(0, 40, 3)[1]]
    for name, rows in (("train", world.rows(0, 40)[0]), ("eval", [(prompts[i % 3], f"{i}") for i in range(30)])):
        made = [row if isinstance(row, dict) else dict(zip(("prompt", "completion"), row, strict=True)) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    files = [f"data.train={tmp_path}/train.jsonl", f"data.eval={tmp_path}/eval.jsonl", "data.render=text"]
    keys = ['data.split="train"', "data.eval_limit=30", 'scorer={name: regex, pattern: "1"}', f"sft.stop={stop}"]
    with lab.session(tmp_path, *SMALL, *files, *keys, "sft.checks=3", "method.dropout=0") as session:
        game = Game(session)
        given = (game.data, game.start, game.start, None)
        session.once("sft-scores", judge_valued, *given, label="θ_0", scorer=game.scorer)
        rows = list(read_lines(session.run.folder / "metrics.jsonl"))
        rows += list(read_lines(session.run.folder / "sft/metrics.jsonl"))
    found = {row["event"]: row for row in rows}
    assert (found["scores"]["n"], found["scores"]["prompts"]) == (30, 3)
    assert (found["scores"]["nll_low"], found["reward"]["reward_low"]) == (None, None)
    checks = [row for row in rows if row["event"] == "check"]
    assert len(checks) > 1
    assert all(row["difference"] is None for row in checks)
    assert any("3 held-out prompts are too few for an interval" in row.get("text", "") for row in rows)
