"""What is learnt by self-play: the section `selfplay` of the config. Lists give one value per iteration."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field

from sparring.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share

T = TypeVar("T")

# Keys of selfplay that take one value, or a list of one per iteration.
PER_ITERATION = ("beta", "lr", "epochs", "anchor", "previous")


class BudgetConfig(Section):
    """What self-play may spend in all its iterations, in one of four units."""

    unit: Literal["seconds", "tokens", "flops", "steps"]
    amount: PositiveFloat


class SelfPlayConfig(Section):
    """Algorithm 1. Lists give one value per iteration."""

    iterations: Annotated[int, Field(ge=0, le=1000)] = 2
    loss: Literal["logistic", "hinge", "exponential", "correlation", "squared", "ipo"] = "logistic"
    reduction: Literal["sum", "mean"] = Field("sum", description="over an answer's token log-probs")
    beta: NonNegativeFloat | list[NonNegativeFloat] = Field(0.1, description="lambda in the paper")
    lr: PositiveFloat | list[PositiveFloat] = 1e-5
    lr_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="one lr is multiplied by this after each iteration; a list of lr stands as it is"
    )
    epochs: PositiveFloat | list[PositiveFloat] = 1.0
    anchor: NonNegativeFloat | list[NonNegativeFloat] = Field(
        0.2, description="weight of the mean token NLL of the real answer"
    )
    previous: Share | list[Share] = Field(
        1.0, description="share of the previous iteration's pairs that are trained on too"
    )
    samples: Annotated[int, Field(gt=0, le=1000)] = Field(1, description="synthetic answers per prompt, K")
    batch_size: PositiveInt = Field(32, description="prompts (pairs when K=1) per optimiser step")
    warmup: Share = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    hold: Literal["continue", "merge", "stack"] = Field(
        "continue", description="how theta_t is held: one adapter trained on, merged, or stacked frozen"
    )
    keep: PositiveInt | None = Field(
        None,
        description="players whose weights stay on disk, counted from the last; θ_0 and the best so far always do; "
        "default: all",
    )
    stop_nll_rise: PositiveFloat | None = Field(0.02, description="stop an iteration when held-out NLL rose by this")
    stop_real_drop: PositiveFloat | None = Field(
        0.05, description="stop an iteration when the real log-prob per token fell by this"
    )
    checks_per_iteration: Annotated[int, Field(ge=0)] = Field(4, description="held-out checks for stop_nll_rise")
    negatives: Literal["opponent", "start", "other_prompt", "shuffled", "none"] = Field(
        "opponent",
        description="what real answers are told from: the opponent's (SPIN), or of a control arm: θ_0's in every "
        "iteration, other prompts' real ones, the opponent's with labels shuffled; none: fine-tuning goes on",
    )
    budget: BudgetConfig | None = Field(
        None, description="spend this on self-play in all, generation included, instead of `epochs`"
    )
    stop_score_drop: PositiveInt | None = Field(
        None,
        description="stop an iteration when at so many checks in a row the scorer's held-out mean is below that of its "
        "start for certain; default: never",
    )
    keep_pairs: Literal["all", "better"] = Field(
        "all", description="better: leave out synthetic answers that the scorer does not put below the real one"
    )


def at(value: T | list[T], iteration: int) -> T:
    """The value of a key that may be given once or per iteration."""
    return value[iteration] if isinstance(value, list) else value


def learning_rate(config: SelfPlayConfig, iteration: int) -> float:
    """The iteration's learning rate: the list's, or the one value, decayed."""
    return config.lr[iteration] if isinstance(config.lr, list) else config.lr * config.lr_decay**iteration
