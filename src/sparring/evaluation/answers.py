"""What answers look like: length, ending, variety, repetition. Counted on token ids."""

from __future__ import annotations

from collections.abc import Sequence


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
