"""What is learnt: the likelihood of real answers (theta_0), and telling them from the opponent's (theta_t+1).

Each task turns items into micro-batches and micro-batches into a loss; the trainer does the rest.
Shapes: B prompts of a micro-batch, K synthetic answers each, R = 1 + K answers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparring.config_selfplay import SelfPlayConfig, at
from sparring.data.collate import Row
from sparring.data.pairs import Pair, Prompt, Rows
from sparring.errors import LawBroken
from sparring.models.base import Base
from sparring.models.scoring import answer_logprobs, computed_tokens, split_rows
from sparring.objectives.pairwise import accuracy, at_zero, margin, pairwise
from sparring.objectives.sft import nll_per_token

Sums = dict[str, tuple[float, float]]  # metric: (sum, weight)

# Rounding noise of a log-prob per square root of a token that law 1 allows, beyond five times what was measured.
NOISE = {torch.float32: 5e-4, torch.float16: 1.25e-3, torch.bfloat16: 5e-3}

# Margins within so many times their rounding noise are ties: where it is small all, where it is large the likely ones.
TIE = {torch.float32: 5.0, torch.float16: 1.0, torch.bfloat16: 1.0}


class SFTTask:
    """Mean NLL over the answer tokens of a step."""

    def __init__(self, base: Base, rows: Rows[Prompt], tokens: int) -> None:
        self.base, self.rows, self.tokens = base, rows, tokens
        self._lengths = rows.lengths("real_ids")

    def _row(self, item: int) -> Row:
        prompt: Prompt = self.rows[item]
        return prompt.prompt_ids, prompt.real_ids

    def split(self, items: list[int]) -> list[list[int]]:
        """Micro-batches by token budget."""
        return split_rows(items, [[self._row(item)] for item in items], self.base, self.tokens)

    def weight(self, items: list[int]) -> float:
        """Answer tokens in the step."""
        return float(sum(self._lengths[item] for item in items))

    def loss(self, model: Any, items: list[int]) -> tuple[Tensor, Sums]:
        """Summed NLL of the answers in nats."""
        rows = [self._row(item) for item in items]
        scores = answer_logprobs(model, self.base, rows)
        nll = -scores.logprob_A.sum()
        total = float(scores.tokens_A.sum())
        tokens = sum(self.base.virtual + len(prompt) + len(answer) - 1 for prompt, answer in rows)
        return nll, {"nll": (nll.item(), total), "tokens": (float(tokens), 1.0)}

    def inspect(self, step: int, means: dict[str, float]) -> None:
        """Nothing can be wrong here that the trainer does not see."""


class PairTask:
    """l(margin) plus the anchor, for pairs whose opponent log-probs are known: one model in memory."""

    def __init__(
        self,
        base: Base,
        pairs: Rows[Pair],
        config: SelfPlayConfig,
        iteration: int,
        tokens: int,
        noise: float = 0.0,
        flipped: float = 0.0,
    ) -> None:
        """noise: rounding noise of the opponent's log-probs, in nats per square root of a token, as measured.

        flipped  share of pairs that are thought to be the wrong way round (label smoothing)
        """
        self.base, self.pairs, self.config, self.tokens, self.flipped = base, pairs, config, tokens, flipped
        self._weights = pairs.numbers("weight", 1.0)
        self._answers = [len(lengths) for lengths in pairs.inner_lengths("synthetic_ids")]
        self.noise, self.allowed = noise, NOISE[base.dtype] + 5 * noise
        self.beta, self.anchor = at(config.beta, iteration), at(config.anchor, iteration)

    def _pairs(self, items: list[int]) -> list[Pair]:
        return [self.pairs[item] for item in items]

    def split(self, items: list[int]) -> list[list[int]]:
        """Micro-batches by token budget; a prompt's real and synthetic answers stay together.

        Where pairs have lost some of their answers, each micro-batch holds pairs with as many.
        """
        alike = [[item for item in items if self._answers[item] == size] for size in sorted({*self._answers})]
        return [
            batch
            for part in alike
            for batch in split_rows(part, [pair_rows(pair) for pair in self._pairs(part)], self.base, self.tokens)
        ]

    def weight(self, items: list[int]) -> float:
        """Prompts in the step, each as much as its pair counts."""
        return sum(self._weights[item] for item in items)

    def loss(self, model: Any, items: list[int]) -> tuple[Tensor, Sums]:
        """Weighted sum over prompts of: mean of l over the K synthetic answers, plus anchor times token NLL."""
        pairs = self._pairs(items)
        rows_of = [pair_rows(pair) for pair in pairs]
        scores = answer_logprobs(model, self.base, [row for rows in rows_of for row in rows])
        player_BR = scores.logprob_A.view(len(pairs), -1)
        tokens_BR = scores.tokens_A.view(len(pairs), -1)
        opponent_BR = torch.tensor(
            [[pair.opponent_real, *pair.opponent_synthetic] for pair in pairs], dtype=torch.float64
        ).to(player_BR.device, player_BR.dtype)
        shift_BR = (player_BR - opponent_BR).detach()
        if self.config.reduction == "mean":
            m_BK = self._margin(player_BR / tokens_BR, opponent_BR / tokens_BR)
        else:
            m_BK = self._margin(player_BR, opponent_BR)
        anchor_B = nll_per_token(player_BR[:, 0], tokens_BR[:, 0])
        weight_B = torch.tensor([pair.weight for pair in pairs], dtype=m_BK.dtype, device=m_BK.device)
        told_B = weight_B * self._told(m_BK)
        loss_B = told_B + weight_B * (self.anchor * anchor_B)
        metrics = self._metrics(player_BR.detach(), shift_BR, tokens_BR, m_BK.detach(), float(len(pairs)))
        metrics["spin_loss"] = (told_B.sum().item(), weight_B.sum().item())
        tokens = sum(computed_tokens(self.base, rows) for rows in rows_of)
        return loss_B.sum(), metrics | {"tokens": (float(tokens), 1.0)}

    def _told(self, m_BK: Tensor) -> Tensor:
        return pairwise(m_BK, self.config.loss, self.beta, self.flipped)

    def _margin(self, player_BR: Tensor, opponent_BR: Tensor) -> Tensor:
        return margin(player_BR[:, 0], player_BR[:, 1:], opponent_BR[:, 0], opponent_BR[:, 1:], self.beta)

    def _metrics(self, player_BR: Tensor, shift_BR: Tensor, tokens_BR: Tensor, m_BK: Tensor, count: float) -> Sums:
        answers = float(m_BK.numel())
        real, synthetic = tokens_BR[:, 0].sum().item(), tokens_BR[:, 1:].sum().item()
        return {
            "margin": (m_BK.sum().item(), answers),
            "accuracy": (accuracy(m_BK, self._tie(tokens_BR)).sum().item(), count),
            "real_shift": (shift_BR[:, 0].sum().item(), count),
            "synthetic_shift": (shift_BR[:, 1:].sum().item(), answers),
            "real_shift_per_token": (shift_BR[:, 0].sum().item(), real),
            "real_logprob": (player_BR[:, 0].sum().item(), real),
            "synthetic_logprob": (player_BR[:, 1:].sum().item(), synthetic),
            "nll": (-player_BR[:, 0].sum().item(), real),
            "noise": ((shift_BR.square() / tokens_BR).sum().item(), float(shift_BR.numel())),
        }

    def _tie(self, tokens_BR: Tensor) -> Tensor:
        """What rounding makes of a margin of 0, from the measured noise of the log-probs, [B, K]."""
        one_BR = tokens_BR.double().rsqrt() if self.config.reduction == "mean" else tokens_BR.double().sqrt()
        return TIE[self.base.dtype] * self.noise * self.beta * (one_BR[:, :1].square() + one_BR[:, 1:].square()).sqrt()

    def inspect(self, step: int, means: dict[str, float]) -> None:
        """Law 1: at the first step of an iteration the player is the opponent, so every margin is 0."""
        noise, allowed = math.sqrt(means.pop("noise")), self.allowed
        if step == 1 and noise > allowed:
            raise LawBroken(
                f"law 1: at the first step the player's log-probs differ from its opponent's by {noise:.2g} nats per "
                f"square root of a token (allowed: {allowed:g}), so the loss is {means['spin_loss']:.4f} instead of "
                f"{at_zero(self.config.loss, self.beta):.4f}; the opponent was scored with other weights, dropout or "
                "template"
            )


def pair_rows(pair: Pair) -> list[Row]:
    """The rows of a pair: prompt with the real answer, then with each synthetic one."""
    return [(pair.prompt_ids, ids) for ids in (pair.real_ids, *pair.synthetic_ids)]
