"""Every fault stops the run or shows in its read-out, the right implementation does neither: on the real code path."""

from __future__ import annotations

import pytest
import torch

import sparring.generation.play as play_phase
from sparring import learning, opponent, selfplay, tasks
from sparring.laboratory.faults import FAULTS
from sparring.laboratory.tiny import make_base
from sparring.laboratory.trials import READOUTS, Arena, Outcome, quiet_libraries
from sparring.models.players import Ring
from sparring.tasks import PairTask

SEEDS = (0, 1, 2)
PROMPTS = 120

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arenas(tmp_path_factory: pytest.TempPathFactory) -> list[Arena]:
    torch.set_num_threads(1)
    quiet_libraries()
    home = tmp_path_factory.mktemp("faults")
    make_base(home / "base")
    return [Arena(home / str(seed), home / "base", seed, PROMPTS) for seed in SEEDS]


@pytest.fixture(scope="module")
def right(arenas: list[Arena]) -> list[Outcome]:
    return [arena.right() for arena in arenas]


def test_the_right_implementation_is_not_stopped_and_shows_nothing(right: list[Outcome]) -> None:
    for outcome in right:
        assert outcome.stopped is None
        assert outcome.readouts.keys() == READOUTS.keys()
        assert abs(outcome.readouts["sampling z"]) < 5
        assert outcome.readouts["law-1 noise"] < 1e-5
        assert outcome.readouts["first margin"] < 1e-5
        assert abs(outcome.readouts["first loss"]) < 1e-5
        assert outcome.readouts["KL"] > 0
        assert sum(outcome.lengths) == pytest.approx(1)


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_fault_is_stopped_and_with_its_guard_lifted_moves_its_readout(
    arenas: list[Arena], right: list[Outcome], name: str
) -> None:
    fault = FAULTS[name]
    if fault.guard is not None:
        assert arenas[0].wrong(name, lifted=False).stopped == fault.guard.law
    lifted = arenas[0].wrong(name, lifted=True)
    assert lifted.stopped is None
    usual = [fault.direction * outcome.readouts[fault.readout] for outcome in right]
    beyond = fault.direction * lifted.readouts[fault.readout] - max(usual)
    assert beyond > max(usual) - min(usual)  # further than seeds differ
    assert beyond > 1e-5  # and than rounding


def test_a_fault_leaves_no_trace() -> None:
    def touched() -> list[object]:
        return [
            play_phase.LocalGenerator, play_phase.sample, selfplay.__dict__["RULES"],
            tasks.answer_logprobs, Ring.challenge, PairTask.inspect, opponent.check_samples, learning.check_scored,
        ]  # fmt: skip

    before = touched()
    for fault in FAULTS.values():
        with fault.inject():
            assert touched() != before
        assert touched() == before
        if fault.guard is not None:
            with fault.guard.lift():
                assert touched() != before
            assert touched() == before
