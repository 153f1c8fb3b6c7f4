"""Held-out negative log-likelihood of the real answers, the yardstick of every player."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparring.data.pairs import Prompt
from sparring.models.base import Base
from sparring.models.scoring import score


def real_logprobs(model: Any, base: Base, prompts: Sequence[Prompt], tokens: int) -> list[float]:
    """log p(real answer | prompt) of every prompt in nats, under the seated player."""
    return score(model, base, [(p.prompt_ids, p.real_ids) for p in prompts], tokens)


def mean_nll(model: Any, base: Base, prompts: Sequence[Prompt], tokens: int) -> float:
    """NLL per token of the real answers in nats: all answers' log-probs over all their tokens."""
    total = sum(real_logprobs(model, base, prompts, tokens))
    return -total / sum(len(p.real_ids) for p in prompts)
