"""What `check` says of quantising the base: what it saves, that it saves next to nothing, or that it would help."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from sparring.config import Config
from sparring.models.base import Base, dtype_warning
from sparring.models.quantised import described

LITTLE_SHARE = 0.1  # of the estimated peak
LITTLE_BYTES = 100 * 2**20
NF4_BYTES = 0.5 + 1 / 64 + 4 / 64 / 256  # per weight: a scale of a byte for 64 of them, a scale of that for 256


def saving_lines(config: Config, base: Base, estimate: dict[str, Any]) -> list[str]:
    """Lines for the plan; none where there is nothing to say."""
    warning = dtype_warning(config.model)
    lines = [f"note: {warning}"] if warning else []
    if base.quantised:
        return [*lines, *_saved(config, base, estimate)]
    return [*lines, *_advised(base, estimate)]


def _saved(config: Config, base: Base, estimate: dict[str, Any]) -> list[str]:
    before, after, peak = estimate["plain_bytes"], estimate["base_bytes"], estimate["memory_bytes"]
    saved = before - after
    share = saved / (peak + saved)
    asked = "as it comes" if config.model.quantise == "none" else "when it is loaded"
    lines = [
        f"quantised {described(base.quantised, config.model)} {asked}: weights {_mib(before)} → {_mib(after)} MiB, "
        f"{share:.0%} of the estimated peak of {_mib(peak + saved)} MiB"
    ]
    if share < LITTLE_SHARE or saved < LITTLE_BYTES:
        lines.append(
            "note: that saves next to nothing here, and costs speed and accuracy; "
            + ("give the base in 16 bits" if config.model.quantise == "none" else "leave model.quantise out")
        )
    return lines


def _advised(base: Base, estimate: dict[str, Any]) -> list[str]:
    """On a GPU whose memory is short."""
    above, free = estimate["memory_bytes"] - estimate["base_bytes"], estimate["free_bytes"]
    if base.device.type != "cuda" or (above <= free and not estimate["checkpointing"]):
        return []
    return [
        f"note: memory is short: beside the base, about {_mib(above)} MiB are needed and {_mib(free)} "
        f"are free; model.quantise=nf4 would free about {_mib(quantisable_bytes(base))} more"
    ]


def quantisable_bytes(base: Base) -> float:
    """What nf4 with double_quant would save: every linear layer but the head, in bytes."""
    head = base.model.get_output_embeddings()
    inner = [m for m in base.model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    return sum(module.weight.numel() for module in inner) * (base.dtype.itemsize - NF4_BYTES)


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f}" if size < 10 * 2**20 else f"{size / 2**20:,.0f}"
