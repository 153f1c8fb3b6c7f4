"""How a player differs from the base: one table, a name → how its adapter is configured.

Adding a method is one function and one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.pytorch_utils import Conv1D

from sparring.config import MethodConfig
from sparring.errors import ConfigError, nearest


def lora(base: Any, config: MethodConfig, dropout: float) -> Any:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): W + (alpha/r)·B·A with B = 0 at the start."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=dropout,
        target_modules=config.target_modules,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        bias="none",
    )


METHODS: dict[str, Callable[[Any, MethodConfig, float], Any]] = {"lora": lora}


def adapter_config(base: Any, config: MethodConfig, dropout: float = 0.0) -> Any:
    """The PEFT config of a fresh adapter of the chosen method on this base."""
    if config.name not in METHODS:
        raise ConfigError(f'method "{config.name}" is not known; {nearest(config.name, METHODS)}')
    return METHODS[config.name](base, config, dropout)
