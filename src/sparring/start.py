"""`start: path`, before anything is loaded: which method the adapter is of, and whether the config agrees."""

from __future__ import annotations

from pathlib import Path

from sparring.config import Config
from sparring.errors import ConfigError, ModelError
from sparring.files import digest, fingerprint_file, read_json
from sparring.methods import METHODS, Settings
from sparring.models.adapters import CONFIG, settings_of
from sparring.models.adapters import WEIGHTS as ADAPTER
from sparring.models.player import ABOUT
from sparring.models.whole import WEIGHTS as WHOLE


def settled(config: Config) -> Config:
    """The config with the method of its `start`, where the player that begins there is trained on.

    Raises ModelError where there is no player, ConfigError where `method` says otherwise than its adapter.
    """
    if config.start is None:
        return config
    folder = _folder(config)
    theirs = _settings(folder)
    if config.selfplay.hold != "continue":
        return config  # a new adapter of the config's own method is put on or beside it
    if "method" in config.model_fields_set and not _agree(config.method, theirs):
        raise ConfigError(
            f"start {folder} is a player of method {theirs.summary}, which is trained on, but the config says method "
            f"{config.method.summary}; leave method out"
        )
    method = config.method if "method" in config.model_fields_set else theirs
    return Config.model_validate({**config.model_dump(mode="json"), "method": method.model_dump(mode="json")})


def fingerprint_start(config: Config) -> str:
    """The content of the folder that `start` names."""
    folder = _folder(config)
    names = (CONFIG, ADAPTER, WHOLE, ABOUT)
    return digest([[name, fingerprint_file(folder / name)] for name in names if (folder / name).exists()])


def _folder(config: Config) -> Path:
    folder = Path(str(config.start)).expanduser()
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
    if (folder / ABOUT).exists() and not read_json(folder / ABOUT)["chain"]:
        raise ModelError(f"start {folder} is the base itself; leave start out, and set sft.epochs=0")
    return settings_of(folder)


def _agree(mine: Settings, theirs: Settings) -> bool:
    """Whether the config's method is the adapter's, apart from what only training knows."""
    same = {"lora", "loraplus"}
    if mine.name != theirs.name and not {mine.name, theirs.name} <= same:
        return False
    size = ("r", "alpha", "length", "reduction", "rank_pattern", "alpha_pattern", "modules_to_save")
    given, found = mine.model_dump(mode="json"), theirs.model_dump(mode="json")
    return all(given.get(key) == found.get(key) for key in size if key in found)
