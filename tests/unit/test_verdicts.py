"""Words follow from the interval and from Holm's p, and say no more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparring.evaluation.metrics import METRICS
from sparring.evaluation.paired import Difference, Parts, needed
from sparring.evaluation.verdicts import caveat, headline, judgement, outcome

NLL, MATCH, LENGTH = METRICS["nll"], METRICS["match"], METRICS["length"]
NAMES = ("spin", "sft")
GAIN = Difference(-0.021, -0.03, -0.012, 0.001, 3, 200, "lower", Parts(1e-5, 1e-3, 1e-3))
LOSS = replace(GAIN, mean=0.021, low=0.012, high=0.03)
NULL = replace(GAIN, mean=0.001, low=-0.008, high=0.01, p=0.7)
NONE = replace(GAIN, low=None, high=None, p=None, prompts=8)
MEANS = {"spin": 1.2, "sft": 1.221, "staged": 1.19}


@pytest.mark.parametrize(
    ("metric", "difference", "holm_p", "smallest", "word"),
    [
        (NLL, GAIN, 0.01, 0.01, "better"),
        (NLL, LOSS, 0.01, 0.01, "worse"),
        (MATCH, GAIN, 0.01, 0.01, "worse"),
        (MATCH, LOSS, 0.01, None, "better"),
        (LENGTH, GAIN, 0.01, None, "lower"),
        (LENGTH, LOSS, 0.01, None, "higher"),
        (NLL, GAIN, None, 0.01, "better"),
        (NLL, GAIN, 0.05, 0.01, "uncertain"),
        (NLL, GAIN, 0.049, 0.01, "better"),
        (NLL, GAIN, 0.01, 0.031, "negligible"),
        (NLL, GAIN, 0.2, 0.031, "negligible"),
        (NLL, GAIN, 0.01, 0.03, "better"),
        (NLL, NULL, 1.0, 0.5, "none"),
        (NLL, replace(NULL, low=0.0), 1.0, 0.001, "none"),
        (NLL, NONE, None, 0.01, "unknown"),
    ],
)
def test_one_word(metric, difference, holm_p, smallest, word) -> None:
    assert outcome(metric, difference, holm_p, smallest) == word


def test_sentences() -> None:
    assert judgement(NLL, GAIN, 0.01, 0.01, NAMES) == (
        "spin is better than sft in NLL (−0.0210 [−0.0300, −0.0120] nats per token, 3 seeds × 200 prompts)."
    )
    assert judgement(LENGTH, LOSS, 0.01, None, NAMES) == (
        "spin is higher than sft in length (+0.0210 [+0.0120, +0.0300] tokens, 3 seeds × 200 prompts)."
    )
    assert judgement(NLL, NULL, 1.0, 0.01, NAMES) == (
        "spin and sft in NLL: no difference seen; at most 0.0100 with these 3 seeds × 200 prompts "
        "(+0.0010 [−0.0080, +0.0100] nats per token)."
    )
    assert "is of no practical size, less than 0.05 (" in judgement(NLL, GAIN, 0.01, 0.05, NAMES)
    uncertain = judgement(NLL, GAIN, 0.081, 0.01, NAMES, 6)
    assert "spin is better than sft in NLL in this sample, but that is not certain" in uncertain
    assert "after correcting for 6 comparisons (p = 0.081)" in uncertain
    assert "for all comparisons" in judgement(NLL, GAIN, 0.081, 0.01, NAMES)


def test_the_larger_end_is_what_it_is_at_most() -> None:
    assert "at most 0.0200 with" in judgement(NLL, replace(NULL, low=-0.02), 1.0, 0.01, NAMES)
    nothing = replace(NULL, mean=-1e-9, low=-1e-9, high=0.0)
    assert "at most 1.0e−09 with these 3 seeds × 200 prompts (−1.0e−09 [−1.0e−09, 0.0000] nats" in judgement(
        NLL, nothing, 1.0, 0.01, NAMES
    )


def test_too_little_says_what_would_be_needed() -> None:
    one = replace(GAIN, seeds=1, parts=Parts(None, 1e-3, 0.0))
    assert judgement(NLL, one, 0.01, 0.01, NAMES).endswith(
        "1 seed × 200 prompts). One seed does not say how much seeds differ: at least 5 seeds × 200 prompts would be "
        "needed to tell a difference of 0.01."
    )
    few = replace(NULL, prompts=20)
    seeds, prompts = needed(few, 0.01)
    assert f"20 prompts are few: at least {seeds} seeds × {prompts} prompts" in judgement(NLL, few, 1.0, 0.01, NAMES)
    assert caveat(replace(one, prompts=8), None) == (
        "One seed does not say how much seeds differ and 8 prompts are few: at least 5 seeds × 30 prompts would be "
        "needed."
    )
    assert caveat(GAIN, 0.01) == ""
    unknown = judgement(NLL, NONE, None, 0.01, NAMES)
    assert unknown.startswith("Whether spin differs from sft in NLL is not known: no interval (−0.0210 nats per token")
    assert "8 prompts are few: at least " in unknown


def test_headlines() -> None:
    assert headline(NLL, MEANS, "spin", "sft", GAIN, 0.01, 0.01) == (
        "spin beats sft in NLL (−0.0210 [−0.0300, −0.0120] nats per token, 3 seeds × 200 prompts). "
        "The lowest mean of 3 arms is that of staged, 1.1900 nats per token."
    )
    assert headline(NLL, MEANS, "spin", "sft", NULL, 1.0, 0.01) == (
        "spin does not beat sft: no difference seen in NLL, at most 0.0100 (+0.0010 [−0.0080, +0.0100] nats per token, "
        "3 seeds × 200 prompts). The lowest mean of 3 arms is that of staged, 1.1900 nats per token."
    )
    assert headline(MATCH, MEANS, "sft", "spin", LOSS, 0.01, 0.01).endswith(
        "Its mean, 1.2210 share, is the highest of 3 arms."
    )


@pytest.mark.parametrize(
    ("difference", "holm_p", "smallest", "start"),
    [
        (LOSS, 0.01, 0.01, "spin does not beat sft: it is worse in NLL ("),
        (GAIN, 0.2, 0.01, "spin does not beat sft: better in NLL, but not certain after correcting for 2 comparisons"),
        (LOSS, 0.2, 0.01, "spin does not beat sft: worse in NLL, but not certain after correcting for 2 comparisons"),
        (GAIN, 0.01, 0.1, "spin does not beat sft: the difference in NLL is of no practical size, below 0.1 ("),
        (NONE, None, 0.01, "Whether spin beats sft in NLL is not known: no interval ("),
    ],
)
def test_a_headline_that_says_no(difference, holm_p, smallest, start) -> None:
    assert headline(NLL, MEANS, "spin", "sft", difference, holm_p, smallest, 2).startswith(start)


def test_no_arm_is_best_without_a_better_way() -> None:
    with pytest.raises(ValueError, match="length has no better way"):
        headline(LENGTH, MEANS, "spin", "sft", GAIN, 0.01, None)
