"""Which verb a config is for: that of its own section `dpo`, `reinforce` or `reward`; without one, `run`."""

from __future__ import annotations

from sparring.config import Config
from sparring.config_dpo import DPOConfig
from sparring.config_reinforce import ReinforceConfig
from sparring.config_reward import RewardConfig
from sparring.errors import ConfigError

SECTIONS = {"dpo": DPOConfig, "reinforce": ReinforceConfig, "reward": RewardConfig}


def verb_of(config: Config) -> str:
    """The verb that a config is for; ConfigError if it is for two."""
    given = [name for name in SECTIONS if getattr(config, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"the sections {' and '.join(given)} are for different verbs; take all but one out")
    return given[0] if given else "run"


def for_verb(config: Config, verb: str) -> Config:
    """The config with the section that the verb reads, by default as it stands there; ConfigError if it has another."""
    other = next((name for name in SECTIONS if name != verb and getattr(config, name) is not None), None)
    if other is not None:
        raise ConfigError(
            f"the section {other} is for another verb: use `sparring {other}` with this config, or take it out"
        )
    if verb not in SECTIONS or getattr(config, verb) is not None:
        return config
    return config.model_copy(update={verb: SECTIONS[verb]()})
