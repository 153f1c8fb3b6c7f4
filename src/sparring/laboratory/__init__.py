"""A world whose data distribution is known, and the tiny model that the embedded default trains."""

from __future__ import annotations

from pathlib import Path


def base_folder() -> Path:
    """The committed base model, in the Hugging Face layout."""
    return Path(__file__).parent / "base"


def default_config() -> Path:
    """The config that `sparring run` uses when it is given none."""
    return Path(__file__).parent / "default.yaml"


def reward_config() -> Path:
    """The config that `sparring reward` uses when it is given none."""
    return Path(__file__).parent / "reward.yaml"


def dpo_config() -> Path:
    """The config that `sparring dpo` uses when it is given none."""
    return Path(__file__).parent / "dpo.yaml"
