"""`start: path`, before anything is loaded: which method the adapter is of, and whether the config agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparring.config import SLOWER, Config
from sparring.configfile import build_config
from sparring.errors import ConfigError, ModelError, RunError
from sparring.files import digest, fingerprint_file, read_json
from sparring.methods import METHODS, Settings
from sparring.models.adapters import CONFIG, settings_of
from sparring.models.adapters import WEIGHTS as ADAPTER
from sparring.models.player import ABOUT
from sparring.models.whole import WEIGHTS as WHOLE
from sparring.names import reward_model

REWARD = "reward.json"  # beside the adapter of a reward model (rewards/model.py)
PLAIN = {"lora", "rslora", "loraplus"}  # of one kind for PEFT


def settled(config: Config) -> Config:
    """The config with the method of its `start`, where the player that begins there is trained on.

    Raises ModelError where there is no player, ConfigError where `method` says otherwise than its adapter.
    """
    if config.start is None:
        return config
    folder = _folder(config)
    theirs, hold = _settings(folder), config.selfplay.hold
    if hold != "continue":
        _goes_under(folder, theirs, config)
        return config  # a new adapter of the config's own method is put on or beside it
    given = "method" in config.model_fields_set
    if given and not _agree(config.method, theirs):
        raise ConfigError(
            f"start {folder} is a player of method {theirs.summary}, which is trained on, but the config says "
            f"{_said(config.method)}; leave method out"
        )
    method = config.method if given else theirs
    tree = {**config.model_dump(mode="json"), "method": method.model_dump(mode="json")}
    if "lr" not in config.selfplay.model_fields_set and method.name != "lora":
        tree["selfplay"]["lr"] = METHODS[method.name].lr[1] / SLOWER
    return build_config(tree)


def _chain(folder: Path) -> list[str]:
    """What a player stands on, from its player.json; ModelError if that is damaged."""
    try:
        about = read_json(folder / ABOUT)
        chain: list[str] = about["chain"]
        if {"base", "hold", "fingerprint"} <= set(about):
            return chain
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RunError):
        pass
    raise ModelError(
        f"start {folder}: its {ABOUT} is damaged; give a whole player, or remove that file from an adapter"
    )


def _goes_under(folder: Path, theirs: Settings, config: Config) -> None:
    """Refuse a start that no other adapter can be put on in this way."""
    mine, hold = config.method, config.selfplay.hold
    row = METHODS[theirs.name]
    way = "merged" if hold == "merge" else "left beside others"
    if not row.holds(hold) or theirs.beside:
        raise ConfigError(
            f"start {folder} is a player of method {theirs.summary}, which cannot be {way}; set selfplay.hold=continue"
        )
    if hold == "stack" and mine.name != theirs.name and not {mine.name, theirs.name} <= PLAIN:
        raise ConfigError(
            f"start {folder} is a player of method {theirs.name}, beside which adapters of method {mine.name} cannot "
            f"stand; set method={theirs.name}, or selfplay.hold=continue"
        )


def fingerprint_start(config: Config) -> str:
    """The content of the folder that `start` names."""
    folder = _folder(config)
    names = (CONFIG, ADAPTER, WHOLE, ABOUT)
    return digest([[name, fingerprint_file(folder / name)] for name in names if (folder / name).is_file()])


def _folder(config: Config) -> Path:
    folder = Path(str(config.start)).expanduser()
    if config.reward is None and ((folder / REWARD).exists() or reward_model(folder)):
        raise ModelError(
            f"start {folder} is of a reward model, which gives scores and no answers; give a player of another run"
        )
    if (folder / "run.lock.yaml").exists():
        best = folder / "best" / "best.json"
        player = read_json(best)["player"] if best.exists() else "sft"
        where = folder / ("sft" if player == "sft" else f"{player}/player")
        raise ModelError(f"start {folder} is a run; give one of its players, such as {where}")
    if not folder.is_dir():
        raise ModelError(f"start {folder} is not a folder; give the folder of an adapter ({CONFIG}, {ADAPTER})")
    return folder


def _settings(folder: Path) -> Settings:
    if (folder / WHOLE).exists() and (folder / ABOUT).exists():
        return METHODS["full"].settings.model_validate({"name": "full"})
    if (folder / WHOLE).exists():
        raise ModelError(f"start {folder} is a model, not an adapter; give it as model.base, with sft.epochs=0")
    if (folder / ABOUT).exists() and not _chain(folder):
        raise ModelError(f"start {folder} is the base itself; leave start out, and set sft.epochs=0")
    return settings_of(folder)


def _agree(mine: Settings, theirs: Settings) -> bool:
    """Whether the config's method is the adapter's, as far as it was given and an adapter says it."""
    if mine.name != theirs.name and not {mine.name, theirs.name} <= {"lora", "loraplus"}:
        return False
    given = mine.model_fields_set - {"name", "dropout", "ratio", "init"}
    return all(_equal(getattr(mine, key), getattr(theirs, key)) for key in given if key in type(theirs).model_fields)


def _equal(given: Any, found: Any) -> bool:
    """Lists in any order; PEFT writes `all-linear` out as the names that it found."""
    if given in ("all-linear", None):
        return True
    if isinstance(given, str | list) and isinstance(found, str | list):
        return sorted([given] if isinstance(given, str) else given) == sorted(
            [found] if isinstance(found, str) else found
        )
    return bool(given == found)


def _said(method: Settings) -> str:
    return ", ".join(
        f"method.{key} {getattr(method, key)}" for key in sorted(method.model_fields_set - {"name"} or {"name"})
    )
