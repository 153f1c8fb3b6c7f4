"""Bottleneck adapters: a small network on the output of a sublayer, before it is added to the residual stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from sparring.methods.method import Method, Settings, readable, target


class _Bottleneck(Settings):
    """Settings of both kinds."""

    reduction: PositiveInt = Field(16, description="the bottleneck is so many times narrower than the model")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="during SFT only")
    target_modules: str | list[str] | None = Field(
        None, description="the sublayers' output projections; default: found by architecture"
    )

    _pattern = field_validator("target_modules")(readable)

    @property
    def sft_dropout(self) -> float:
        """As given."""
        return self.dropout

    @property
    def summary(self) -> str:
        """Name and reduction."""
        return f"{self.name}, reduction {self.reduction}"

    def widened(self, times: int) -> dict[str, Any]:
        """A wider bottleneck."""
        return {"reduction": max(1, round(self.reduction / times))}


class Houlsby(_Bottleneck):
    """Settings of Houlsby's adapters."""

    name: Literal["houlsby"] = "houlsby"
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"


class Pfeiffer(_Bottleneck):
    """Settings of Pfeiffer's adapters."""

    name: Literal["pfeiffer"] = "pfeiffer"
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"


def _fresh(base: Any, settings: Houlsby | Pfeiffer, dropout: float) -> Any:
    from sparring.models.bottleneck import HoulsbyConfig, PfeifferConfig

    kind = HoulsbyConfig if isinstance(settings, Houlsby) else PfeifferConfig
    return kind(
        task_type="CAUSAL_LM",
        reduction_factor=settings.reduction,
        activation=settings.activation,
        bottleneck_dropout=dropout,
        target_modules=None if settings.target_modules is None else target(settings.target_modules),
    )


def _read(about: dict[str, Any], kind: str) -> dict[str, Any] | None:
    if about.get("peft_type") != kind:
        return None
    named = {"reduction": "reduction_factor", "activation": "activation", "target_modules": "target_modules"}
    return {mine: about[theirs] for mine, theirs in named.items() if about.get(theirs)}


HOULSBY = Method(
    Houlsby,
    what="h + W_up·φ(W_down·h) behind attention and behind the feed-forward part",
    source="Houlsby et al. 2019, arXiv 1902.00751",
    fresh=_fresh,
    lr=(3e-4, 1e-3, 3e-3),
    read=lambda about: _read(about, "HOULSBY"),
)
PFEIFFER = Method(
    Pfeiffer,
    what="h + W_up·φ(W_down·h) behind the feed-forward part only",
    source="Pfeiffer et al. 2021, arXiv 2005.00247",
    fresh=_fresh,
    lr=(3e-4, 1e-3, 3e-3),
    read=lambda about: _read(about, "PFEIFFER"),
)
