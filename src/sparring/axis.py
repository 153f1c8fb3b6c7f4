"""A comparison along an axis: one key, several values, and for each of them fine-tuning and self-play from it.

    VALUE-sft   fine-tuning alone; its learning rate is chosen from the method's own grid
    VALUE       self-play with the anchor from that θ_0; its learning rate from shares of what was chosen for it

All see the same data for as many epochs and iterations, and not an equal budget: what each costs is a part of the
answer. Every value is compared with the first, and self-play with its own fine-tuning.
"""

from __future__ import annotations

import json
import re
from functools import reduce
from typing import Any

import yaml

from sparring.arms import APART, Arm, chosen_arms, learning_rates
from sparring.config import AxisConfig, CompareConfig, Config
from sparring.configfile import changed
from sparring.errors import ConfigError
from sparring.known_arms import Settings, anchored
from sparring.methods import method_of, switched
from sparring.section import Section
from sparring.verbs import SECTIONS

SHARES = (1 / 30, 1 / 10, 1 / 3)  # of fine-tuning's learning rate, for self-play
BEYOND = 3  # learning rates tried beyond a grid's end: what suits a method differs by orders of magnitude between bases
ALONE = "-sft"
# What all values must share: how they are tested, and what a study sets for its runs.
SHARED = ("data", "evaluation", "compare", "model.base", "model.template", "selfplay.budget", "scorer", *SECTIONS)
OWN = (*APART, "track", "start")


def read_axis(text: str) -> str:
    """`method=lora,dora` as an override: compare.axis={...}. ConfigError if it is not KEY=VALUE,VALUE."""
    key, equals, values = text.partition("=")
    try:
        found = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        found = None
    if not (equals and key and found):
        raise ConfigError(f'--axis "{text}" is not key=value,value, as in method=lora,dora or selfplay.beta=0.1,1')
    return f"compare.axis={json.dumps({'key': key, 'values': found})}"


def asked_arms(config: Config, compare: CompareConfig) -> tuple[CompareConfig, list[Arm]]:
    """The arms of a comparison; along an axis, with target and reference that say whom the verdict is about.

    Raises ConfigError as `chosen_arms` does, and for an axis that cannot be.
    """
    if compare.axis is None:
        return compare, chosen_arms(config, compare)
    _refuse(config, compare, compare.axis)
    arms = _along(config, compare, compare.axis)
    second, first = arms[3], arms[1]
    return compare.model_copy(update={"target": second.name, "reference": first.name}), arms


def _refuse(config: Config, compare: CompareConfig, axis: AxisConfig) -> None:
    if compare.arms is not None:
        raise ConfigError("an axis makes its own arms; leave compare.arms out, or the axis")
    usual = CompareConfig()
    for key in ("target", "reference", "match"):
        if getattr(compare, key) != getattr(usual, key):
            raise ConfigError(
                f"compare.{key} is for arms at an equal budget; along an axis every value is compared with the first, "
                "at the same data, epochs and iterations: leave it out"
            )
    if axis.key in OWN or any(axis.key == key or axis.key.startswith(key) for key in SHARED):
        raise ConfigError(f"compare.axis is over {axis.key}, which all arms must share; set it for the whole study")
    if len(axis.values) < 2:
        raise ConfigError(f"compare.axis gives {len(axis.values)} value of {axis.key}; give two or more to compare")
    if axis.key.split(".")[0] == "method" and config.start is not None:
        raise ConfigError(
            f"compare.axis is over {axis.key}, but `start` is a player of one method and size; leave one of them out"
        )


def _along(config: Config, compare: CompareConfig, axis: AxisConfig) -> list[Arm]:
    arms: list[Arm] = []
    for value in axis.values:
        point = _point(config, axis.key, value)
        made = changed(config, {**anchored(config), **point})
        if made.selfplay.iterations == 0:
            raise ConfigError("selfplay.iterations is 0, so nothing would spar; give 1 or more")
        name = _name(axis.key, made)
        if any(arm.name in (name, f"{name}{ALONE}") for arm in arms):
            raise ConfigError(f'compare.axis gives "{name}" twice; give each value once')
        arms += _two(name, axis.key, point, made, compare, arms[:2])
    return arms


def _point(config: Config, key: str, value: Any) -> Settings:
    """The settings of one value; another method's section replaces the old one whole."""
    if key != "method":
        return {key: value}
    if not isinstance(value, str):
        raise ConfigError(f"compare.axis over method has the value {value!r}; give names of methods")
    return {"method": switched(config.method, value)}


def _name(key: str, made: Config) -> str:
    """A folder name for the value, as the config reads it."""
    value: Any = made.method.name if key == "method" else reduce(_inside, key.split("."), made)
    if isinstance(value, Section):
        raise ConfigError(f"compare.axis is over {key}, which is a section; give one of its keys")
    shown = re.sub(r"[^\w.-]+", "_", f"{value:g}" if isinstance(value, float) else str(value))
    return shown if re.match(r"\w", shown) else f"_{shown}"


def _inside(tree: Any, part: str) -> Any:
    return tree[part] if isinstance(tree, dict) else getattr(tree, part)


def _two(
    name: str, key: str, point: Settings, made: Config, compare: CompareConfig, first: list[Arm]
) -> tuple[Arm, Arm]:
    """Fine-tuning alone, and self-play from it. first: those of the first value; empty if this is it."""
    label = name if key == "method" else f"{key.split('.')[-1]} {name}"
    row = method_of(made.method)
    what = f"{row.name}: {row.what} ({row.source})" if key == "method" else f"with {key} {name}"
    same = bool(first) and key.startswith("selfplay.")  # fine-tuning sees nothing of it
    rates = list(dict.fromkeys(compare.sft_lr or row.lr))
    if key == "sft.lr" or made.sft.epochs == 0 or made.start is not None or same:
        rates = []
    alone = Arm(
        name=f"{name}{ALONE}",
        label=f"{label} SFT",
        what=f"fine-tuning alone, {what}",
        settings={**point, "selfplay.iterations": 0},
        key="sft.lr" if rates else None,
        values=rates,
        matched=False,
        after=first[0].name if same else None,
        widens=0 if compare.sft_lr else BEYOND,
        against=() if same or not first else (first[0].name,),
    )
    values, shares = _play_rates(key, made, compare, (first[0] if same else alone).values)
    play = Arm(
        name=name,
        label=f"{label} self-play",
        what=f"self-play from it, {what}",
        settings={**anchored(made), **point},
        key=None if key == "selfplay.lr" else "selfplay.lr",
        values=[] if key == "selfplay.lr" else values,
        matched=False,
        after=first[0].name if same else alone.name,
        shares=() if key == "selfplay.lr" else shares,
        widens=0 if compare.lr else BEYOND,
        against=(*((first[1].name,) if first else ()), alone.name),
    )
    return alone, play


def _play_rates(
    key: str, made: Config, compare: CompareConfig, tried: list[float]
) -> tuple[list[float], tuple[float, ...]]:
    """Self-play's grid, and which shares of fine-tuning's learning rate it holds, once that is chosen from `tried`."""
    if compare.lr is not None:
        return learning_rates(made, compare), ()
    if tried:
        return taken(SHARES, tried[len(tried) // 2]), SHARES
    if key == "sft.lr":
        return taken(SHARES, made.sft.lr), ()
    return learning_rates(made, compare), ()


def taken(shares: tuple[float, ...], whole: float) -> list[float]:
    """So many shares of a learning rate, as one would write them."""
    return [float(f"{share * whole:.2g}") for share in shares]
