"""The section `dpo` of the config: learning from preference pairs, and how it is one iteration of the same machine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sparring.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share


class DPOConfig(Section):
    """Preference pairs: `sparring dpo`. The reference is θ_0."""

    loss: Literal["sigmoid", "ipo", "hinge", "exponential"] = Field(
        "sigmoid", description="sigmoid: DPO; ipo: (h − 1/2β)² of the unscaled margin h"
    )
    reduction: Literal["sum", "mean"] | None = Field(
        None,
        description="over an answer's token log-probs; default: mean for ipo (as its authors and TRL do), else sum",
    )
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of pairs that are thought to be the wrong way round (cDPO)"
    )
    anchor: NonNegativeFloat = Field(0.0, description="weight of the mean token NLL of the chosen answer")
    lr: PositiveFloat | None = Field(None, description="default: 1e-5; for methods other than lora, the method's")
    epochs: PositiveFloat = 1.0
    batch_size: PositiveInt = Field(32, description="pairs per optimiser step")
    warmup: Share = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    hold: Literal["continue", "merge", "stack"] = Field(
        "continue", description="how θ_0 is held: one adapter trained on, merged, or stacked frozen"
    )
    stop_nll_rise: PositiveFloat | None = Field(
        None, description="stop when the held-out NLL of chosen answers rose by this"
    )
    stop_chosen_drop: PositiveFloat | None = Field(
        None, description="stop when the chosen answers' log-prob per token fell by this"
    )
    checks: Annotated[int, Field(ge=0)] = Field(4, description="held-out checks of the NLL while it learns")
    select: Literal["preference", "nll", "exact_kl", "match", "scorer"] = Field(
        "preference",
        description="what chooses between θ_0 and the player: held-out preference accuracy, or as evaluation.select",
    )

    @model_validator(mode="after")
    def _smooths(self) -> DPOConfig:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"dpo.label_smoothing is for the sigmoid loss, not for {self.loss}; leave it out")
        return self

    def as_selfplay(self) -> dict[str, Any]:
        """The section `selfplay` with which learning from these pairs is one iteration; `lr` only if it is given."""
        return {
            "iterations": 1,
            "loss": "logistic" if self.loss == "sigmoid" else self.loss,
            "reduction": self.reduction or ("mean" if self.loss == "ipo" else "sum"),
            "beta": self.beta,
            **({} if self.lr is None else {"lr": self.lr}),
            "epochs": self.epochs,
            "anchor": self.anchor,
            "previous": 0.0,
            "batch_size": self.batch_size,
            "warmup": self.warmup,
            "schedule": self.schedule,
            "hold": self.hold,
            "stop_nll_rise": self.stop_nll_rise,
            "stop_real_drop": self.stop_chosen_drop,
            "checks_per_iteration": self.checks,
        }


def reference_of(start: str | None, epochs: float, base: str) -> str:
    """What the reference is, in one sentence: it depends on how θ_0 comes about."""
    if start is not None:
        what = f"the player in {start}, its adapter on: not the base under it"
    elif epochs:
        what = "the base fine-tuned on the chosen answers (sft); sft.epochs=0 would make it the base itself"
    else:
        what = f"the base itself, {base} (sft.epochs is 0)"
    return f"reference: θ_0, {what}; its log-probs are computed once, and the player begins as its copy"
