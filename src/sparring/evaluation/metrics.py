"""The yardsticks: one table, a name → what it is called, which way is better, and where its numbers lie.

A metric `per` token or prompt has a number for each test prompt, so that two arms can be compared in pairs; one per
set (distinct-n, say) has only one number for all answers. All arms are measured on the same yardsticks; the loss of
self-play is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One yardstick.

    key     of the number in a test row (per token, prompt), or in the facts of the whole set
    better  which way is better; None: neither, the real answers are the measure
    """

    label: str
    unit: str
    key: str
    per: Literal["token", "prompt", "set"] = "prompt"
    better: Literal["lower", "higher"] | None = "lower"


METRICS: dict[str, Metric] = {
    "nll": Metric("NLL", "nats per token", "nll", "token"),
    "exact_kl": Metric("exact KL", "nats per answer", "exact_kl"),
    "template_kl": Metric("template KL", "nats per answer", "template_kl"),
    "valid_mass": Metric("valid mass", "probability", "valid_mass", better="higher"),
    "total_variation": Metric("total variation", "", "total_variation"),
    "match": Metric("exact match, T = 1", "share", "match", better="higher"),
    "match_greedy": Metric("exact match, greedy", "share", "match_greedy", better="higher"),
    "valid": Metric("valid answers, T = 1", "share", "valid", better="higher"),
    "reward": Metric("scorer's mean", "score", "reward", better="higher"),
    "kl_base": Metric("KL to base", "nats per answer", "kl_base", better=None),
    "kl_start": Metric("KL to θ_0", "nats per answer", "kl_start", better=None),
    "length": Metric("length", "tokens", "length", better=None),
    "end_rate": Metric("end rate", "share", "ended", better=None),
    "repetition": Metric("repetition", "share", "repetition", better=None),
    "distinct_1": Metric("distinct-1", "share", "distinct_1", "set", None),
    "distinct_2": Metric("distinct-2", "share", "distinct_2", "set", None),
    "self_bleu": Metric("self-BLEU", "", "self_bleu", "set", None),
    "ece": Metric("calibration error", "ECE over tokens", "ece", "set"),
    "prompt_tokens": Metric("prompt tokens", "tokens per answer", "prompt_tokens", better=None),
}


def columns(metric: Metric, rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]] | None:
    """(numbers, weights) of some test rows: a mean is sum(numbers)/sum(weights). None if a row has no number.

    For NLL these are an answer's nats and its tokens; for all else a number and 1.
    """
    numbers = [row.get(metric.key) for row in rows]
    if metric.per == "set" or not numbers or any(number is None for number in numbers):
        return None
    weights = [float(row["tokens"]) if metric.per == "token" else 1.0 for row in rows]
    return [float(number) for number in numbers if number is not None], weights
