"""Control arms on the real code path: each breaks what it says, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sparring.controls import RULES
from sparring.data.pairs import Pair
from sparring.generation.play import played_rows
from sparring.run import Phase
from sparring.selfplay import self_play
from sparring.session import Session
from tests.laws.lab import Game, pair_rows, session

SHORT = ("selfplay.iterations=2", "selfplay.samples=2", "evaluation.samples=1")


class Arm:
    """A control's phases, as the loop makes them."""

    def __init__(self, opened: Session, name: str) -> None:
        self.session, self.rules, self.game = opened, RULES[name], Game(opened)

    def iteration(self, opponent: Phase, t: int) -> tuple[Phase, Phase, Phase]:
        once, data = self.session.once, self.game.data
        played = once(f"{t}/played", self.rules.play, data, opponent, iteration=t)
        pairs = once(f"{t}/pairs", self.rules.score_pairs, data, opponent, played, None, iteration=t)
        learn = self.rules.learn
        return played, pairs, once(f"{t}/player", learn, opponent, pairs, data, self.game.scores, iteration=t)


@pytest.fixture
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    with session(tmp_path, *SHORT, *getattr(request, "param", ())) as found:
        yield found


def test_a_stale_opponent_is_theta_0_in_every_iteration(opened: Session) -> None:
    arm = Arm(opened, "start")
    first = arm.iteration(arm.game.start, 0)
    second = arm.iteration(first[2], 1)
    start = opened.player(arm.game.start).fingerprint
    assert first[0].facts["opponent"] == second[0].facts["opponent"] == start
    assert opened.player(first[2]).fingerprint != start
    # margins are measured from the opponent of now: the first step's are 0, or law 1 would have stopped the run
    assert second[1].facts["opponent"] == opened.player(first[2]).fingerprint
    # fresh answers, not those of the iteration before
    assert [r.synthetic_ids for r in played_rows(first[0].folder)] != [
        r.synthetic_ids for r in played_rows(second[0].folder)
    ]


def test_other_prompts_lend_their_real_answers(opened: Session) -> None:
    arm = Arm(opened, "other_prompt")
    played, pairs, _ = arm.iteration(arm.game.start, 0)
    rows = played_rows(played.folder)[:]
    real = {tuple(row.real_ids) for row in rows}
    for row in rows:
        assert len(row.synthetic_ids) == 2
        assert all(tuple(ids) in real for ids in row.synthetic_ids)
        assert set(row.finish) == {"end"}
    assert played.facts["flops"] == played.facts["tokens"] == 0
    # each real answer is lent as often as any other: other prompts' answers tell nothing but that they are other's
    lent = sorted(tuple(row.synthetic_ids[0]) for row in rows)
    assert lent == sorted(tuple(row.real_ids) for row in rows)
    assert pairs.facts["pairs"] > 0


def test_a_coin_calls_answers_real(opened: Session) -> None:
    arm = Arm(opened, "shuffled")
    data = {p.key: p.real_ids for p in opened.prompts(arm.game.data, "train")[:]}
    played, pairs, _ = arm.iteration(arm.game.start, 0)
    rows: list[Pair] = pair_rows(pairs)[:]
    swapped = [row for row in rows if row.real_ids != data[row.key]]
    assert 0.25 * len(rows) < len(swapped) < 0.75 * len(rows)
    honest = {row.key: row for row in _honest(opened, arm, played)}
    for row in rows:
        right = honest[row.key]
        scored = {tuple(right.real_ids): right.opponent_real}
        scored |= dict(zip(map(tuple, right.synthetic_ids), right.opponent_synthetic, strict=True))
        assert scored[tuple(row.real_ids)] == pytest.approx(row.opponent_real, abs=1e-5)
        assert [scored[tuple(ids)] for ids in row.synthetic_ids] == pytest.approx(row.opponent_synthetic, abs=1e-5)


def _honest(opened: Session, arm: Arm, played: Phase) -> list[Pair]:
    rules, game = RULES["opponent"], arm.game
    pairs = opened.once("honest/pairs", rules.score_pairs, game.data, game.start, played, None, iteration=0)
    return pair_rows(pairs)[:]


def test_without_negatives_fine_tuning_goes_on(opened: Session) -> None:
    arm = Arm(opened, "none")
    played, pairs, player = arm.iteration(arm.game.start, 0)
    assert not list(played.folder.glob("*.arrow"))
    assert not list(pairs.folder.glob("*.arrow"))
    assert opened.player(player).fingerprint != opened.player(arm.game.start).fingerprint
    steps = [event for event in opened.run.events()] or None
    assert steps is None  # the phase is finished
    assert player.facts["steps"] == 3  # 48 prompts, 16 a step
    assert player.facts["flops"] > 0


@pytest.mark.parametrize("opened", [("selfplay.hold=merge", "selfplay.negatives=none")], indirect=True)
def test_stages_are_merged_and_begun_again(opened: Session) -> None:
    self_play(opened)
    last = opened.player(Phase("1/player", opened.run.folder / "1" / "player", ""))
    assert [folder.parent.name + "/" + folder.name for folder in last.adapters[1:]] == ["0/player", "1/player"]
    assert len(last.adapters) == 3


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_control_is_a_whole_run(tmp_path: Path, name: str) -> None:
    with session(tmp_path, *SHORT, f"selfplay.negatives={name}", "data.test_size=20") as opened:
        best = self_play(opened)
        assert best.facts["player"] in ("sft", "0", "1")
        assert (opened.run.folder / "test" / "best.jsonl").exists()
        assert len((opened.run.folder / "test" / "best.jsonl").read_text().splitlines()) == 20
