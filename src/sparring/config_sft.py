"""How θ_0 is made: the section `sft` of the config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sparring.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share

LATER_SFT = ("stop", "patience", "checks")  # keys that came later, and count with `stop` alone


class SFTConfig(Section):
    """Supervised fine-tuning, which makes theta_0."""

    epochs: NonNegativeFloat = Field(1.0, description="0: theta_0 is the base itself")
    lr: PositiveFloat = Field(2e-4, description="default for methods other than lora: the middle of the method's own")
    batch_size: PositiveInt = Field(32, description="examples per optimiser step")
    warmup: Share = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    stop: Literal["none", "nll", "scorer"] = Field(
        "none",
        description="check held-out prompts, stop when it only gets worse, and hand over the best check: by NLL of the "
        "real answers, or by the scorer's mean over sampled ones",
    )
    patience: PositiveInt = Field(
        2, description="for `stop`: at so many checks in a row it must be worse than the best one for certain"
    )
    checks: PositiveInt = Field(8, description="for `stop`: held-out checks in all, the last step's among them")
