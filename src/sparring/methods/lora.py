"""LoRA and what is built on it: rank-stabilised, with a principal start, with two learning rates, decomposed."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sparring.errors import nearest
from sparring.methods.method import Method, Settings, readable, target
from sparring.section import PositiveFloat

MOST = 4096
Rank = Annotated[int, Field(gt=0, le=MOST)]


class LoRA(Settings):
    """Settings of LoRA."""

    name: Literal["lora"] = "lora"
    r: Rank = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="during SFT only: self-play needs the player to start equal to the opponent"
    )
    target_modules: str | list[str] = Field(
        "all-linear", description="a name, a list of names, a pattern for whole module paths, or all-linear"
    )
    rank_pattern: dict[str, Rank] = Field(default_factory=dict, description="module name or pattern: its own r")
    alpha_pattern: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="module name or pattern: its own alpha"
    )
    modules_to_save: list[str] = Field(
        default_factory=list, description="modules trained whole beside the adapter, such as embed_tokens and lm_head"
    )

    _pattern = field_validator("target_modules")(readable)

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            readable(name)  # raises ValueError
        return given

    @property
    def sft_dropout(self) -> float:
        """As given."""
        return self.dropout

    @property
    def beside(self) -> bool:
        """With `modules_to_save`."""
        return bool(self.modules_to_save)

    @property
    def summary(self) -> str:
        """Name and rank."""
        return f"{self.name}, rank {self.r}"

    def widened(self, times: int) -> dict[str, Any]:
        """Greater ranks at the same scale alpha/r."""
        return self._times(times, times)

    def _times(self, times: int, scale: float) -> dict[str, Any]:
        most = max([self.r, *self.rank_pattern.values()])
        if times * most > MOST:
            raise ValueError(f"a rank of {times} × {most} is above {MOST}")
        ranks = {name: times * rank for name, rank in self.rank_pattern.items()}
        alphas = {name: scale * alpha for name, alpha in self.alpha_pattern.items()}
        return {"r": times * self.r, "alpha": scale * self.alpha, "rank_pattern": ranks, "alpha_pattern": alphas}


def fresh(base: Any, settings: LoRA, dropout: float, times: int = 1, **others: Any) -> Any:
    """The PEFT config. times: the rank is so many times the settings', at the same scale."""
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    _present(base, settings)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=times * settings.r,
        lora_alpha=times * settings.alpha,
        lora_dropout=dropout,
        target_modules=target(settings.target_modules),
        rank_pattern={name: times * rank for name, rank in settings.rank_pattern.items()},
        alpha_pattern={name: times * alpha for name, alpha in settings.alpha_pattern.items()},
        modules_to_save=settings.modules_to_save or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        bias="none",
        **others,
    )


def _present(base: Any, settings: LoRA) -> None:
    """Raise ValueError for a name or pattern that no module of the base has: PEFT says nothing of it."""
    paths = [path for path, _ in base.named_modules() if path]
    for key, names in (
        ("rank_pattern", settings.rank_pattern),
        ("alpha_pattern", settings.alpha_pattern),
        ("modules_to_save", settings.modules_to_save),
    ):
        for name in names:
            if not any(re.match(rf"(.*\.)?({name})$", path) for path in paths):
                known = sorted({path.rpartition(".")[2] for path in paths if not path[-1].isdigit()})
                raise ValueError(
                    f'{key} names "{name}", which no module of this base is called; {nearest(name, known)}'
                )


def read(about: dict[str, Any], flag: str = "") -> dict[str, Any] | None:
    """Settings of a LoRA from its adapter_config.json. flag: which variant it must be; empty: none of them."""
    variants = {name for name in ("use_dora", "use_rslora") if about.get(name)}
    if about.get("peft_type") != "LORA" or variants != ({flag} if flag else set()):
        return None
    named = {
        "r": "r",
        "alpha": "lora_alpha",
        "target_modules": "target_modules",
        "rank_pattern": "rank_pattern",
        "alpha_pattern": "alpha_pattern",
        "modules_to_save": "modules_to_save",
    }
    return {mine: about[theirs] for mine, theirs in named.items() if about.get(theirs)}


LORA = Method(
    LoRA,
    what="W + (α/r)·B·A, with B = 0 at the start",
    source="Hu et al. 2021, arXiv 2106.09685",
    fresh=fresh,
    merges=True,
    gguf="adapter",
    vllm="adapter",
    read=read,
)


class RsLoRA(LoRA):
    """Settings of rsLoRA."""

    name: Literal["rslora"] = "rslora"  # type: ignore[assignment]

    def widened(self, times: int) -> dict[str, Any]:
        """Greater ranks at the same alpha/√r."""
        return self._times(times, times**0.5)


RSLORA = Method(
    RsLoRA,
    what="W + (α/√r)·B·A: the scale does not vanish at high rank",
    source="Kalajdzievski 2023, arXiv 2312.03732",
    fresh=lambda base, settings, dropout: fresh(base, settings, dropout, use_rslora=True),
    merges=True,
    gguf="adapter",
    vllm="adapter",
    read=lambda about: read(about, "use_rslora"),
)


class DoRA(LoRA):
    """Settings of DoRA."""

    name: Literal["dora"] = "dora"  # type: ignore[assignment]


DORA = Method(
    DoRA,
    what="m·(W + (α/r)·B·A) / ‖W + (α/r)·B·A‖ by columns: magnitude m and direction apart",
    source="Liu et al. 2024, arXiv 2402.09353",
    fresh=lambda base, settings, dropout: fresh(base, settings, dropout, use_dora=True),
    stacks=False,  # two magnitudes of one weight do not add up
    merges=True,
    gguf="merged",
    vllm="merged",
    read=lambda about: read(about, "use_dora"),
)


class LoRAPlus(LoRA):
    """Settings of LoRA+."""

    name: Literal["loraplus"] = "loraplus"  # type: ignore[assignment]
    ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        16.0, description="B matrices learn so many times faster than A matrices"
    )


LORAPLUS = Method(
    LoRAPlus,
    what="LoRA whose B learns faster than its A",
    source="Hayou et al. 2024, arXiv 2402.12354",
    fresh=fresh,
    merges=True,
    gguf="adapter",
    vllm="adapter",
    lr=(3e-5, 1e-4, 3e-4),
    ratio=lambda settings: settings.ratio,
)


class PiSSA(LoRA):
    """Settings of LoRA with a principal start."""

    name: Literal["pissa"] = "pissa"  # type: ignore[assignment]
    alpha: PositiveFloat = 16.0  # α = r, as in the paper: the principal part is not rescaled


def _principal(model: Any, name: str) -> None:
    from sparring.models.pissa import begin

    begin(model, name)


def _held(model: Any, name: str) -> None:
    from sparring.models.pissa import hold_half

    hold_half(model, name)


PISSA = Method(
    PiSSA,
    what="LoRA that starts at W's largest singular directions; saved as plain LoRA of rank 2r, half of it frozen",
    source="Meng et al. 2024, arXiv 2404.02948",
    fresh=lambda base, settings, dropout: fresh(base, settings, dropout, times=2),
    begin=_principal,
    train=_held,
    learns=0.5,
    starts_as_base=False,  # B·A - B_0·A_0 is 0 but for rounding
    merges=True,
    quantised=False,  # the singular directions of a quantised weight are not the weight's
    gguf="adapter",
    vllm="adapter",
)
