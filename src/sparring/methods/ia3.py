"""IA³: keys, values and the feed-forward part's inside, each scaled by a trained vector."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from sparring.methods.method import Method, Settings, readable, target

# Names of the modules that make keys and values, and of those that read the feed-forward part's inside.
KEYS_VALUES = ("k_proj", "v_proj", "key", "value", "c_attn", "query_key_value", "qkv_proj")
FEED_FORWARD = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "mlp.c_proj")


class IA3(Settings):
    """Settings of IA³."""

    name: Literal["ia3"] = "ia3"
    target_modules: str | list[str] | None = Field(
        None, description="what is scaled; default: keys, values and the feed-forward part, by architecture"
    )
    feedforward_modules: str | list[str] | None = Field(None, description="those of them whose input is scaled")

    _pattern = field_validator("target_modules")(readable)


def _fresh(base: Any, settings: IA3, dropout: float) -> Any:
    from peft import IA3Config
    from transformers.pytorch_utils import Conv1D

    paths = [name for name, module in base.named_modules()]

    def present(names: tuple[str, ...]) -> list[str]:
        return [name for name in names if any(path.endswith(f".{name}") for path in paths)]

    inside = present(FEED_FORWARD) if settings.feedforward_modules is None else target(settings.feedforward_modules)
    chosen = present(KEYS_VALUES) + list(inside) if settings.target_modules is None else target(settings.target_modules)
    if not chosen:
        raise ValueError(
            f"no modules of this base are named {', '.join(KEYS_VALUES + FEED_FORWARD)}; name them in "
            "method.target_modules and method.feedforward_modules"
        )
    if isinstance(inside, list) and isinstance(chosen, list):
        apart = sorted(set(inside) - set(chosen))
        if apart and settings.feedforward_modules is not None:
            raise ValueError(f"method.feedforward_modules names {apart[0]}, which is not in method.target_modules")
        inside = [name for name in inside if name in chosen]
    return IA3Config(
        task_type="CAUSAL_LM",
        target_modules=chosen,
        feedforward_modules=inside,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
    )


def _read(about: dict[str, Any]) -> dict[str, Any] | None:
    if about.get("peft_type") != "IA3":
        return None
    return {name: about.get(name) for name in ("target_modules", "feedforward_modules")}


IA3_METHOD = Method(
    IA3,
    what="keys, values and the feed-forward part's inside times trained vectors, all 1 at the start",
    source="Liu et al. 2022, arXiv 2205.05638",
    fresh=_fresh,
    merges=True,
    quantised=False,  # PEFT's layers for quantised weights leave in fp32, whatever came in
    gguf="merged",
    vllm="merged",
    lr=(1e-3, 3e-3, 1e-2),
    read=_read,
)
