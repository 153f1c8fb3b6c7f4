"""Which items each optimiser step holds, and how the learning rate goes: functions of nothing but their arguments."""

from __future__ import annotations

import math

import torch


def plan_steps(items: int, per_step: int, epochs: float, seed: int) -> list[list[int]]:
    """All optimiser steps of a phase: shuffled passes, joined and cut, so only the last can be smaller.

    A fraction of an epoch is a fraction of a pass. The plan depends on nothing but its arguments.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = max(1, round(items * epochs))
    order: list[int] = []
    while len(order) < wanted:
        order += torch.randperm(items, generator=generator).tolist()
    order = order[:wanted]
    return [order[start : start + per_step] for start in range(0, wanted, per_step)]


def rate_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """What the learning rate is multiplied by at `step` (from 0): a rise over `warmup` steps, then a course.

    Never 0 before the last step is done, so that even a single step learns.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = 1 - (step - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[schedule]
