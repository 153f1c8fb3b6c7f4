"""What is compared: the section `compare` of the config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sparring.section import PositiveFloat, PositiveInt, Section


class ArmConfig(Section):
    """One arm of a comparison: settings on top of the config's own."""

    name: str = Field(min_length=1, description="a known arm, or a new name")
    like: str | None = Field(None, description="a known arm whose settings come first")
    what: str | None = Field(None, description="a sentence for the report")
    settings: dict[str, Any] = Field(default_factory=dict, description="dotted key: value")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="dotted key: values, one chosen on held-out data; default: lr"
    )


class AxisConfig(Section):
    """One key with several values: each is fine-tuned, and then spars."""

    key: str = Field(min_length=1, description="method, or any dotted key")
    values: list[Any] = Field(description="two or more; all are compared with the first")


class CompareConfig(Section):
    """Arms at equal budgets, with intervals: what `sparring compare` does."""

    arms: list[str | ArmConfig] | None = Field(None, description="names of known arms, or own ones; default: all known")
    axis: AxisConfig | None = Field(
        None, description="instead of arms: fine-tuning and self-play with each value of a key, at the same data"
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = Field([0, 1, 2])
    primary: Literal["nll", "exact_kl", "match", "scorer"] = Field(
        "nll",
        description="the one metric that chooses and that the verdict is about, declared before the run; scorer: the "
        "mean of `scorer` over sampled answers",
    )
    target: str = Field("spin-anchor", description="the arm that sets the budget, and that the verdict is about")
    reference: str = Field("continued", description="the arm that it is compared with")
    match: Literal["seconds", "tokens", "flops", "steps"] = Field("flops", description="the budget made equal")
    lr: Annotated[list[PositiveFloat], Field(min_length=1)] | None = Field(
        None,
        description="learning rates tried for every arm; default: 3 from selfplay.lr to sft.lr; along an axis 1/30, "
        "1/10 and 1/3 of fine-tuning's",
    )
    sft_lr: Annotated[list[PositiveFloat], Field(min_length=1)] | None = Field(
        None, description="fine-tuning's learning rates tried for every value of an axis; default: its method's"
    )
    tune_seeds: PositiveInt = Field(
        1, description="seeds on which the learning rate is chosen; the others take it over"
    )
    smallest: PositiveFloat = Field(0.01, description="the smallest difference of the primary metric that matters")
    jobs: PositiveInt = Field(1, description="runs at the same time")

    @property
    def metric(self) -> str:
        """The primary metric's name in the table METRICS."""
        return "reward" if self.primary == "scorer" else self.primary

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
        if twice is not None:
            raise ValueError(f"compare.seeds names {twice} twice; give different seeds")
        return seeds
