"""What a reward model learns: to put the chosen answer of a pair above the rejected one.

Shapes: B pairs of a micro-batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparring.config_reward import RewardConfig
from sparring.data.collate import Row
from sparring.data.pairs import Preference, Rows
from sparring.errors import LawBroken
from sparring.models.base import Base
from sparring.models.reward_head import RewardHead, rewards
from sparring.models.scoring import computed_tokens, split_rows
from sparring.objectives.reward import bradley_terry, centring, right
from sparring.tasks import Sums


class RewardTask:
    """Bradley and Terry's loss with a margin, label smoothing, and centring; a prompt is computed once for its pair."""

    def __init__(
        self, base: Base, head: RewardHead, pairs: Rows[Preference], config: RewardConfig, tokens: int
    ) -> None:
        self.base, self.head, self.pairs, self.config, self.tokens = base, head, pairs, config, tokens

    def _pairs(self, items: list[int]) -> list[Preference]:
        return [self.pairs[item] for item in items]

    def split(self, items: list[int]) -> list[list[int]]:
        """Micro-batches by token budget; the two answers of a pair stay together."""
        return split_rows(items, [compared_rows(pair) for pair in self._pairs(items)], self.base, self.tokens)

    def weight(self, items: list[int]) -> float:
        """Pairs in the step, half ones as such."""
        return sum(pair.weight for pair in self._pairs(items))

    def loss(self, model: Any, items: list[int]) -> tuple[Tensor, Sums]:
        """Summed loss over pairs."""
        pairs, config = self._pairs(items), self.config
        rows = [row for pair in pairs for row in compared_rows(pair)]
        rewards_B2 = rewards(model, self.base, self.head, rows).view(-1, 2)
        chosen_B, rejected_B = rewards_B2.unbind(1)
        weight_B = torch.tensor([pair.weight for pair in pairs], device=rewards_B2.device)
        told_B = bradley_terry(chosen_B, rejected_B, config.margin, config.label_smoothing)
        loss = (weight_B * (told_B + config.centre * centring(chosen_B, rejected_B))).sum()
        found, count = rewards_B2.detach(), float(weight_B.sum())
        gap_B = found[:, 0] - found[:, 1]
        return loss, {
            "reward_loss": ((weight_B * told_B.detach()).sum().item(), count),
            "margin": ((weight_B * gap_B).sum().item(), count),
            "accuracy": ((weight_B * right(found[:, 0], found[:, 1])).sum().item(), count),
            "chosen_reward": ((weight_B * found[:, 0]).sum().item(), count),
            "rejected_reward": ((weight_B * found[:, 1]).sum().item(), count),
            "tokens": (float(computed_tokens(self.base, rows) + len(rows)), 1.0),
        }

    def inspect(self, step: int, means: dict[str, float]) -> None:
        """The head starts at 0, so the first step's loss is known: another head, or other weights, would show."""
        s, m = self.config.label_smoothing, self.config.margin
        known = (1 - s) * math.log1p(math.exp(m)) + s * math.log1p(math.exp(-m))
        if step == 1 and abs(means["reward_loss"] - known) > 1e-5 * (1 + known):
            raise LawBroken(
                f"at the first step the reward model's loss is {means['reward_loss']:.6f} instead of {known:.6f}: its "
                "head did not start at 0"
            )


def compared_rows(pair: Preference) -> list[Row]:
    """The rows of a pair: prompt with the chosen answer, then with the rejected one."""
    return [(pair.prompt_ids, pair.chosen_ids), (pair.prompt_ids, pair.rejected_ids)]
