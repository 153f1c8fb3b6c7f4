"""The section `reinforce` of the config: reinforcement learning on a scorer's rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sparring.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share


class ReinforceConfig(Section):
    """What `sparring reinforce` does; names are TRL's where it has them."""

    iterations: Annotated[int, Field(gt=0, le=1000)] = Field(4, description="times that answers are sampled and learnt")
    algorithm: Literal["grpo", "rloo", "reinforce"] = "grpo"
    samples: Annotated[int, Field(gt=0, le=1000)] = Field(8, description="answers per prompt: a group")
    prompts: PositiveInt | None = Field(
        None, description="prompts per iteration, drawn anew; default: all, or what selfplay.budget pays for"
    )
    epochs: PositiveFloat = Field(1.0, description="passes over an iteration's groups; with selfplay.budget a forecast")
    lr: PositiveFloat | None = Field(None, description="default: selfplay.lr, of its first iteration")
    select: Literal["scorer", "nll", "exact_kl", "match"] = Field(
        "scorer", description="the held-out metric that chooses the best iteration, as evaluation.select elsewhere"
    )
    batch_size: PositiveInt = Field(16, description="groups per optimiser step")
    warmup: Share = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "constant"
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="what GRPO's advantages are divided by: the standard deviation of the group, of all, or 1"
    )
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = Field("dapo", description="how tokens add up to a loss")
    epsilon: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="how far a token's ratio may lead")
    epsilon_high: PositiveFloat | None = Field(None, description="the same upwards; default: epsilon")
    beta: NonNegativeFloat = Field(0.04, description="weight of KL to θ_0, per token")
    use_bias_correction_kl: bool = Field(
        True, description="multiply KL by the ratio: its gradient is then that of KL(player ‖ θ_0), not of the reverse"
    )
    kl_alarm: PositiveFloat | None = Field(10.0, description="warn when KL to θ_0 is above, in nats per answer")
    kl_limit: PositiveFloat | None = Field(25.0, description="end an iteration when KL to θ_0 is above it in a step")
    length_alarm: Annotated[float, Field(gt=1)] | None = Field(
        1.5, description="warn when answers are so many times longer or shorter than θ_0's"
    )
    entropy_alarm: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.25, description="warn when entropy per token is below this share of θ_0's"
    )

    @model_validator(mode="after")
    def _groups(self) -> ReinforceConfig:
        if self.samples < 2 and self.algorithm != "reinforce":
            raise ValueError(
                f"reinforce.samples is 1, but {self.algorithm} compares the answers of a group; give 2 or more, or "
                "algorithm reinforce"
            )
        return self
