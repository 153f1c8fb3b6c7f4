"""The section `reward` of the config: how a reward model is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sparring.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share


class RewardConfig(Section):
    """A reward model: the base with an adapter and a linear head, learnt from pairs that someone compared."""

    epochs: PositiveFloat = 1.0
    lr: PositiveFloat | None = Field(None, description="of adapter and head; default: sft.lr")
    batch_size: PositiveInt = Field(32, description="pairs per optimiser step")
    warmup: Share = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    margin: NonNegativeFloat = Field(0.0, description="how far chosen answers should be above rejected ones")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="the share of comparisons that are taken to be the wrong way round"
    )
    centre: NonNegativeFloat = Field(0.01, description="weight of (r_w + r_l)², which holds the mean reward at 0")
