"""The head of a reward model: one number for an answer, from the last hidden state of its last token.

It starts at zero, so that at the first step every reward is 0 and the loss is known: log 2. At that step only the
head has a gradient, for what goes to the adapter is multiplied by the head; from the second step on both have one.
(A random head would give the adapter one at once, and rewards that mean nothing, which depend on the seed.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sparring.data.collate import Row
from sparring.errors import ModelError
from sparring.files import written
from sparring.models.adapters import fingerprint_tensors, read_tensors
from sparring.models.base import Base
from sparring.models.scoring import each, last_states

FILE = "head.safetensors"
NAME = "reward_head"
WEIGHT = "score.weight"  # as transformers' sequence classifiers call it


class RewardHead(nn.Module):
    """r = w·h, fp32, without bias: a bias would not change any difference."""

    def __init__(self, weight_D: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_D.float())

    def forward(self, hidden_AD: Tensor) -> Tensor:
        """Rewards [A] of last hidden states."""
        return hidden_AD.float() @ self.weight


def fresh(base: Base) -> RewardHead:
    """A head at zero, on the base's device."""
    return RewardHead(torch.zeros(_size(base), device=base.device))


def _size(base: Base) -> int:
    """D: what the language head takes."""
    head = base.model.get_output_embeddings()
    return int(base.model.config.get_text_config().hidden_size if head is None else head.weight.shape[1])


def put_on(base: Base, head: RewardHead) -> None:
    """Make a head part of the model in memory, so that it trains, and is in checkpoints, with the adapter."""
    base.model.add_module(NAME, head)


def take_off(base: Base) -> None:
    """Take the head off again: a base has none."""
    base.model._modules.pop(NAME, None)


def rewards(model: Any, base: Base, head: RewardHead, rows: Sequence[Row]) -> Tensor:
    """The reward of every answer [A], fp32, with a graph."""
    rewards_A: Tensor = head(last_states(model, base, rows))
    return rewards_A


def reward(model: Any, base: Base, head: RewardHead, rows: Sequence[Row], tokens: int) -> list[float]:
    """The reward of every row's answer, in the order given, by calls with at most so many tokens."""
    return each(lambda chosen: rewards(model, base, head, chosen).tolist(), base, rows, tokens)


# ---------------------------------------------------------------- on disk


def save_head(folder: Path, head: RewardHead) -> str:
    """Write head.safetensors, which holds `score.weight` [1, D]; returns its fingerprint."""
    tensors = {WEIGHT: head.weight.detach().cpu().unsqueeze(0).contiguous()}
    with written(folder / FILE) as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    return fingerprint_tensors(tensors)


def load_head(folder: Path, base: Base, fingerprint: str) -> RewardHead:
    """The head of a reward model's folder, on the base's device; ModelError unless it is the one that was saved."""
    tensors = read_tensors(folder / FILE)
    if fingerprint_tensors(tensors) != fingerprint:
        raise ModelError(f"{folder / FILE} has been changed since it was made; make the reward model again")
    if tensors[WEIGHT].shape != (1, _size(base)):
        raise ModelError(
            f"{folder / FILE} is of another base: it takes {tensors[WEIGHT].shape[-1]} numbers, and this one gives "
            f"{_size(base)}; give the base it belongs to"
        )
    head = RewardHead(tensors[WEIGHT].squeeze(0).to(base.device))
    return head.requires_grad_(False)
