"""Calibration error and self-BLEU against plain, slow versions."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from tests.helpers import base_of, random_rows

from sparring.evaluation import answers
from sparring.evaluation.answers import bleu, self_bleu
from sparring.evaluation.calibration import calibration_error
from sparring.models import head
from sparring.models.scoring import calibration


def slow_error(confidence: list[float], right: list[bool]) -> float:
    """Guo et al. 2017, equation 3, with 15 bins ((m-1)/15, m/15]."""
    total = 0.0
    for m in range(1, 16):
        inside = [i for i, c in enumerate(confidence) if (m - 1) / 15 < c <= m / 15]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            sure = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - sure)
    return total


def test_calibration_error_against_its_definition() -> None:
    rng = random.Random(0)
    confidence = [rng.uniform(0.001, 0.999) for _ in range(500)]
    right = [rng.random() < c**2 for c in confidence]
    got = calibration_error(torch.tensor(confidence, dtype=torch.float64), torch.tensor(right))
    assert got == pytest.approx(slow_error(confidence, right), abs=1e-12)
    assert got > 0.05


def test_calibration_error_of_known_players() -> None:
    sure = torch.ones(8)
    assert calibration_error(sure, torch.ones(8, dtype=torch.bool)) == 0
    assert calibration_error(sure, torch.zeros(8, dtype=torch.bool)) == 1
    half = torch.full((8,), 0.5)
    assert calibration_error(half, torch.arange(8) < 4) == 0


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_confidences_of_real_answers(name: str, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile by tile, against the softmax of all logits at once."""
    base = base_of(name)
    monkeypatch.setitem(head.TILE, "cpu", 3 * base.vocabulary)
    rows = random_rows(base.vocabulary, count=6)
    with torch.no_grad():
        likely = base.model(input_ids=torch.tensor([rows[0][0]]), use_cache=False).logits[0, -1].argmax()
    rows.append((rows[0][0], [int(likely)]))  # one token that is right
    confidence, right = calibration(base.model, base.at(temperature), rows, 100)
    sure: list[float] = []
    hits: list[bool] = []
    for prompt, answer in rows:
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].double()
        p = torch.softmax(logits / temperature, -1)[len(prompt) - 1 : -1]
        sure += p.amax(-1).tolist()
        hits += (p.argmax(-1) == torch.tensor(answer)).tolist()
    assert len(confidence) == sum(len(answer) for _, answer in rows)
    assert sorted(confidence.tolist()) == pytest.approx(sorted(sure), abs=1e-5)
    assert int(right.sum()) == sum(hits) >= 1
    assert calibration_error(confidence, right) == pytest.approx(slow_error(sure, hits), abs=1e-4)


# ---------------------------------------------------------------- self-BLEU


def slow_bleu(answer: list[int], references: list[list[int]]) -> float:
    """Papineni et al. 2002 with Lin and Och's smoothing, as it is written."""
    if not answer:
        return 0.0
    product = 1.0
    for n in range(1, 5):
        grams = [tuple(answer[i : i + n]) for i in range(len(answer) - n + 1)]
        hits = 0
        for gram in set(grams):
            most = 0
            for other in references:
                most = max(most, sum(tuple(other[i : i + n]) == gram for i in range(len(other) - n + 1)))
            hits += min(grams.count(gram), most)
        product *= (hits + (n > 1)) / (len(grams) + (n > 1))
    closest = sorted(references, key=lambda other: (abs(len(other) - len(answer)), len(other)))[0]
    penalty = 1.0 if len(answer) >= len(closest) else math.exp(1 - len(closest) / len(answer))
    return penalty * product**0.25


def some_answers(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(6) for _ in range(rng.randrange(1, 15))] for _ in range(count)]


def test_self_bleu_against_a_slow_version() -> None:
    said = some_answers(20)
    slow = [slow_bleu(ids, said[:i] + said[i + 1 :]) for i, ids in enumerate(said)]
    assert self_bleu(said) == pytest.approx(sum(slow) / 20, abs=1e-12)
    assert 0.05 < sum(slow) / 20 < 0.95
    for ids in ([], [1], [1, 2, 3]):
        assert bleu(ids, said[:3]) == pytest.approx(slow_bleu(ids, said[:3]), abs=1e-12)


def test_self_bleu_of_equal_and_of_strange_answers() -> None:
    assert self_bleu([[1, 2, 3, 4, 5]] * 4) == pytest.approx(1.0)
    assert self_bleu([[4 * i + j for j in range(4)] for i in range(5)]) == 0.0
    assert self_bleu([[1, 2]]) is None


def test_self_bleu_samples_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    said = some_answers(300)
    scored: Counter[int] = Counter()
    plain = answers._bleu

    def counted(ids: list[int], grams: list[answers.Grams], references: list[tuple[int, list[answers.Grams]]]) -> float:
        scored[len(references)] += 1
        return plain(ids, grams, references)

    monkeypatch.setattr(answers, "_bleu", counted)
    found = self_bleu(said)
    assert scored == {answers.MOST_OTHERS: answers.MOST_ANSWERS}
    assert self_bleu(said) == found
    assert self_bleu(said, seed=1) != found
