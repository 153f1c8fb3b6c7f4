"""What is learnt from rewards: the clipped policy gradient on groups of answers, plus KL to theta_0.

Shapes: A answers of a micro-batch, N their tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparring.config_reinforce import ReinforceConfig
from sparring.data.collate import Row
from sparring.data.pairs import Group, Rows
from sparring.errors import LawBroken
from sparring.models.base import Base
from sparring.models.scoring import answer_tokens, computed_tokens, split_rows
from sparring.objectives.policy_gradient import REDUCTIONS, clipped, is_clipped, k3
from sparring.tasks import NOISE, Sums


class PolicyTask:
    """-A·ρ, clipped, and β·KL of every token, for answers whose log-probs are known: one model in memory."""

    def __init__(
        self, base: Base, groups: Rows[Group], config: ReinforceConfig, limit: int, tokens: int, noise: float = 0.0
    ) -> None:
        """limit: the most tokens an answer may have. noise: rounding of the sampled log-probs, nats per √token."""
        self.base, self.groups, self.config, self.limit, self.tokens = base, groups, config, limit, tokens
        self.allowed = NOISE[base.dtype] + 5 * noise
        self._lengths = groups.inner_lengths("answer_ids")

    def _groups(self, items: list[int]) -> list[Group]:
        return [self.groups[item] for item in items]

    def split(self, items: list[int]) -> list[list[int]]:
        """Micro-batches by token budget; a group stays together, for it shares its prompt."""
        return split_rows(items, [group_rows(group) for group in self._groups(items)], self.base, self.tokens)

    def weight(self, items: list[int]) -> float:
        """What the step's summed loss is divided by, as `loss_type` says."""
        tokens_A = torch.tensor([float(n) for item in items for n in self._lengths[item]], dtype=torch.float64)
        return float(REDUCTIONS[self.config.loss_type](tokens_A, self.limit)[1].sum())

    def loss(self, model: Any, items: list[int]) -> tuple[Tensor, Sums]:
        """Summed loss of some groups' answers, and metrics."""
        config, groups = self.config, self._groups(items)
        rows_of = [group_rows(group) for group in groups]
        logprob_N, tokens_A = answer_tokens(model, self.base, [row for rows in rows_of for row in rows])
        sampled_N = _flat([answer for group in groups for answer in group.sampled], logprob_N)
        start_N = _flat([answer for group in groups for answer in group.start], logprob_N)
        advantage_A = logprob_N.new_tensor([value for group in groups for value in group.advantages])
        weight_A, part_A = REDUCTIONS[config.loss_type](tokens_A.to(logprob_N.dtype), self.limit)
        advantage_N, weight_N = (each.repeat_interleave(tokens_A) for each in (advantage_A, weight_A))
        bounds = (config.epsilon, config.epsilon_high)
        policy_N = clipped(logprob_N, sampled_N, advantage_N, *bounds)
        kl_N = k3(logprob_N, start_N)
        if config.use_bias_correction_kl:
            kl_N = kl_N * (logprob_N - sampled_N).exp()
        loss = (weight_N * (policy_N + config.beta * kl_N)).sum()
        with torch.no_grad():
            idle_N = is_clipped(logprob_N, sampled_N, advantage_N, *bounds)
            answers, count, whole = float(len(tokens_A)), float(len(logprob_N)), part_A.sum().item()
            # the same KL by an estimator that a single unlikely token does not drive up, for the limit
            gap_N = (logprob_N - sampled_N).exp() * (logprob_N - start_N)
            metrics = {
                "policy_loss": ((weight_N * policy_N).sum().item(), whole),
                "kl": (kl_N.sum().item(), answers),
                "drift": (gap_N.sum().item(), answers),
                "clipped": (idle_N.sum().item(), count),
                "noise": ((logprob_N - sampled_N).square().sum().item(), count),
                "tokens": (float(sum(computed_tokens(self.base, rows) for rows in rows_of)), 1.0),
            }
        return loss, metrics

    def inspect(self, step: int, means: dict[str, float]) -> None:
        """Law 1: at the first step the player is the one that gave the answers, so every ratio is 1."""
        noise = means.pop("noise") ** 0.5
        if step == 1 and noise > self.allowed:
            raise LawBroken(
                f"law 1: at the first step the tokens' log-probs differ by {noise:.2g} nats from those with which they "
                f"were sampled (allowed: {self.allowed:g}), so the ratio is not 1; the answers were scored with other "
                "weights, dropout or template"
            )


def group_rows(group: Group) -> list[Row]:
    """The rows of a group: the prompt with each of its answers."""
    return [(group.prompt_ids, ids) for ids in group.answer_ids]


def _flat(answers: list[list[float]], like: Tensor) -> Tensor:
    return like.new_tensor([value for answer in answers for value in answer])
