"""The table of methods: a name → how a player differs from the base. Adding one is a file and a line.

Imports no torch: what a method needs of it is imported when its adapter is made.
"""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

from sparring.errors import ConfigError, nearest
from sparring.methods.bottleneck import HOULSBY, PFEIFFER
from sparring.methods.full import FULL
from sparring.methods.ia3 import IA3_METHOD
from sparring.methods.lora import DORA, LORA, LORAPLUS, PISSA, RSLORA
from sparring.methods.method import Method, Settings
from sparring.methods.virtual import PREFIX, PROMPT

__all__ = ["METHODS", "Method", "Settings", "known", "method_of", "switched"]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (LORA, DORA, RSLORA, LORAPLUS, PISSA, PREFIX, PROMPT, HOULSBY, PFEIFFER, IA3_METHOD, FULL)
}


def method_of(settings: Settings) -> Method:
    """The row of a section `method`."""
    return METHODS[settings.name]


def known(name: str) -> Method:
    """The row of a name; ConfigError with the nearest one if it is not known."""
    if name not in METHODS:
        raise ConfigError(f'method "{name}" is not known; {nearest(name, METHODS)}')
    return METHODS[name]


def switched(settings: Settings, name: str) -> dict[str, Any]:
    """The section `method` of another method, which takes over what both have and was set; ConfigError if unknown."""
    mine, theirs = settings.model_dump(mode="json", exclude_defaults=True), known(name).settings.model_fields
    ours = type(settings).model_fields
    kept = {key: mine[key] for key in mine if key in theirs and _same(key, ours[key], theirs[key])}
    return {**kept, "name": name}


def _same(key: str, one: FieldInfo, other: FieldInfo) -> bool:
    """Whether settings of one name mean the same: `target_modules` of LoRA are not those of a bottleneck."""
    return bool(one.annotation == other.annotation) and (
        key != "target_modules" or one.description == other.description
    )
