"""Full fine-tuning: no adapter; every weight of the base trains, and a player is the whole model."""

from __future__ import annotations

from typing import Literal

from sparring.methods.method import Method, Settings


class Full(Settings):
    """Settings of full fine-tuning: none of its own."""

    name: Literal["full"] = "full"


FULL = Method(
    Full,
    what="θ itself",
    source="Chen et al. 2024, arXiv 2401.01335, and everyone",
    fresh=None,
    stacks=False,
    quantised=False,
    gguf="merged",
    vllm="merged",
    lr=(3e-5, 1e-4, 3e-4),
)
