"""What answers look like: length, ending, variety, repetition. Counted on token ids."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

Grams = Counter[tuple[int, ...]]

BLEU_ORDER = 4
MOST_ANSWERS, MOST_OTHERS = 200, 32  # answers scored, and others that each is held against: bounds the cost


def describe(answers: Sequence[Sequence[int]], ended: Sequence[bool]) -> dict[str, float]:
    """Mean length in tokens, share that ended, distinct-1, distinct-2, repetition."""
    return {
        "length": sum(len(ids) for ids in answers) / len(answers),
        "end_rate": sum(ended) / len(answers),
        "distinct_1": distinct(answers, 1),
        "distinct_2": distinct(answers, 2),
        "repetition": sum(repetition(ids) for ids in answers) / len(answers),
    }


def distinct(answers: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of all answers (Li et al. 2016, arXiv 1510.03055)."""
    grams = [tuple(ids[i : i + n]) for ids in answers for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Share of an answer's n-grams that it has said before (Welleck et al. 2020, arXiv 1908.04319)."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(answers: Sequence[Sequence[int]], seed: int = 0) -> float | None:
    """Mean BLEU-4 of answers against others of the same player (Zhu et al. 2018, arXiv 1802.01886); 1: all equal.

    At most MOST_ANSWERS answers, each against a sample of MOST_OTHERS others, both drawn by `seed` alone; None for
    fewer than two answers. See `bleu`.
    """
    if len(answers) < 2:
        return None
    rng = random.Random(f"self-BLEU {seed}")
    chosen = sorted(rng.sample(range(len(answers)), min(MOST_ANSWERS, len(answers))))
    grams = [_grams(ids) for ids in answers]
    total = 0.0
    for index in chosen:
        others = rng.sample([i for i in range(len(answers)) if i != index], min(MOST_OTHERS, len(answers) - 1))
        total += _bleu(answers[index], grams[index], [(len(answers[i]), grams[i]) for i in others])
    return total / len(chosen)


def bleu(answer: Sequence[int], references: Sequence[Sequence[int]]) -> float:
    """Sentence BLEU-4 (Papineni et al. 2002): brevity penalty × geometric mean of clipped n-gram precisions.

    Smoothed as in Lin and Och 2004: above unigrams, 1 is added to matches and to n-grams. The reference length is
    that of the reference closest in length, the shorter of two.
    """
    return _bleu(answer, _grams(answer), [(len(ids), _grams(ids)) for ids in references])


def _grams(ids: Sequence[int]) -> list[Grams]:
    return [Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)) for n in range(1, BLEU_ORDER + 1)]


def _bleu(answer: Sequence[int], grams: list[Grams], references: list[tuple[int, list[Grams]]]) -> float:
    if not answer:
        return 0.0
    logs = 0.0
    for n, mine in enumerate(grams):
        theirs = [reference[n] for _, reference in references]
        hits = sum(min(count, max(other[gram] for other in theirs)) for gram, count in mine.items())
        extra = 1 if n else 0
        if hits + extra == 0:
            return 0.0
        logs += math.log((hits + extra) / (sum(mine.values()) + extra))
    length = min((size for size, _ in references), key=lambda size: (abs(size - len(answer)), size))
    return math.exp(logs / BLEU_ORDER + min(0.0, 1 - length / len(answer)))
