"""Prompt and prefix tuning: trained virtual tokens before every prompt."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt

from sparring.methods.method import Method, Settings


class _Virtual(Settings):
    """Settings of both kinds."""

    length: PositiveInt = Field(16, description="virtual tokens, which take up context")
    init: Literal["noise", "tokens"] = Field(
        "noise", description="small noise, or what the base makes of frequent tokens, which large models prefer"
    )

    @property
    def virtual(self) -> int:
        """As given."""
        return self.length

    @property
    def summary(self) -> str:
        """Name and length."""
        return f"{self.name}, {self.length} virtual tokens"

    def widened(self, times: int) -> dict[str, Any]:
        """More virtual tokens."""
        return {"length": times * self.length}


class Prompt(_Virtual):
    """Settings of prompt tuning."""

    name: Literal["prompt"] = "prompt"
    length: PositiveInt = Field(32, description="virtual tokens, which take up context")


class Prefix(_Virtual):
    """Settings of prefix tuning."""

    name: Literal["prefix"] = "prefix"


def _fresh(base: Any, settings: Prompt | Prefix, dropout: float) -> Any:
    from sparring.models.virtual import VirtualConfig

    return VirtualConfig(
        task_type="CAUSAL_LM", kind=settings.name, num_virtual_tokens=settings.length, start=settings.init
    )


def _read(about: dict[str, Any], kind: str) -> dict[str, Any] | None:
    return {"length": about["num_virtual_tokens"]} if about.get("peft_type") == kind else None


PROMPT = Method(
    Prompt,
    what="p_θ(y | P, x): the embeddings P of virtual tokens before the prompt",
    source="Lester et al. 2021, arXiv 2104.08691",
    fresh=_fresh,
    starts_as_base=False,
    stacks=False,
    lr=(3e-3, 1e-2, 3e-2),
    read=lambda about: _read(about, "PROMPT_TUNING"),
)
PREFIX = Method(
    Prefix,
    what="attention over [P_K; K] and [P_V; V]: keys and values of virtual tokens in every layer",
    source="Li and Liang 2021, arXiv 2101.00190",
    fresh=_fresh,
    starts_as_base=False,
    stacks=False,
    lr=(3e-2, 1e-1, 3e-1),
    read=lambda about: _read(about, "PREFIX_TUNING"),
)
