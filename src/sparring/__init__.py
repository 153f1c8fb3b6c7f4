"""Sparring: low-rank self-play fine-tuning of small language models.

`import sparring` loads no torch; the public names are found when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparring.config import Config
    from sparring.configfile import build_config, read_config
    from sparring.errors import SparringError
    from sparring.job import run_job
    from sparring.selfplay import self_play

_HOMES = {
    "Config": "sparring.config",
    "SparringError": "sparring.errors",
    "build_config": "sparring.configfile",
    "read_config": "sparring.configfile",
    "run_job": "sparring.job",
    "self_play": "sparring.selfplay",
}

__all__ = ["Config", "SparringError", "build_config", "read_config", "run_job", "self_play"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sparring' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
