"""Measure a model against p_data exactly: score every valid answer, end token included.

The model is behind `score`, so the same lines measure a base, a player, or a fake in a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sparring.errors import LawBroken, ModelError
from sparring.laboratory import world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Score = Callable[[list[list[int]], list[list[int]]], list[float]]
TOLERANCE = 1e-3  # rounding that a sum of probabilities may show above 1


def measure(score: Score, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> dict[str, float]:
    """Exact divergences of a model from p_data, means over P prompts; see `world.exact`.

    score       prompt ids and answer ids, N lists of each -> N sums of answer log-probs in nats, the
                end token included
    tokenizer   must split text at the end of the prompt and have an end token, else ModelError

    Raises LawBroken when a prompt's valid answers have more than probability 1 in all, or a NaN.
    """
    return world.exact(prompts, valid_logprobs(score, tokenizer, prompts))


def valid_logprobs(score: Score, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[dict[str, float]]:
    """For each prompt, log p in nats of every valid answer: what `world.exact` takes. Raises as `measure`."""
    valid = [list(world.answers(prompt)) for prompt in prompts]
    pairs = [tokens(tokenizer, p, text) for p, texts in zip(prompts, valid, strict=True) for text in texts]
    scores = iter(score([prompt for prompt, _ in pairs], [answer for _, answer in pairs]))
    logprobs = [{text: float(next(scores)) for text in texts} for texts in valid]
    for prompt, one in zip(prompts, logprobs, strict=True):
        total = math.fsum(math.exp(value) for value in one.values())
        if not total <= 1.0 + TOLERANCE:
            raise LawBroken(
                f"the valid answers of {prompt} have probability {total:.6g} in all, which cannot exceed 1; "
                "score must return sums of log-probabilities over the answer's tokens, end token included"
            )
    return logprobs


def tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Prompt ids (with `<s>` if the tokenizer adds one) and answer ids (end token last).

    Together they are tokenizer(prompt + answer) + end token; ModelError when the tokenizer joins the
    end of the prompt with the answer, or has no end token.
    """
    before: list[int] = tokenizer(prompt)["input_ids"]
    whole: list[int] = tokenizer(prompt + answer)["input_ids"]
    end: int | None = tokenizer.eos_token_id
    if end is None or whole[: len(before)] != before:
        raise ModelError(
            f"the tokenizer has no end token or joins tokens across {prompt!r} and {answer!r}; "
            "measure the laboratory with a tokenizer like its own"
        )
    return before, [*whole[len(before) :], end]
