"""LoRA+ (Hayou et al. 2024, arXiv 2402.12354): B learns faster than A, for they do not scale alike with the width."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def parameter_groups(named: dict[str, Tensor], lr: float, ratio: float) -> list[dict[str, Any]]:
    """Groups for a torch optimiser: every `lora_B` at ratio·lr, all else at lr, each in the order given.

    named  the trained parameters by name. What adapts an embedding stays at lr: there the zero start is in A.

    Raises ValueError if ratio is not above 0, or if nothing is a `lora_B`: then LoRA+ would be nothing but its name.
    """
    if ratio <= 0:
        raise ValueError(f"the ratio of LoRA+ is {ratio}; it must be above 0")
    fast = [tensor for name, tensor in named.items() if "lora_B" in name.split(".")]
    if not fast:
        raise ValueError("LoRA+ gives LoRA's B matrices their own learning rate, and none of them is trained here")
    slow = [tensor for name, tensor in named.items() if "lora_B" not in name.split(".")]
    groups = [{"params": slow, "lr": lr}, {"params": fast, "lr": lr * ratio}]
    return [group for group in groups if group["params"]]
