"""What a study is asked for: its config with what every study needs, and its arms, before anything is run."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.arms import Arm
from sparring.axis import asked_arms
from sparring.config import CompareConfig, Config
from sparring.configfile import changed
from sparring.errors import ConfigError
from sparring.rewarding import wanted_scorer

LABORATORY_TEST = 300  # prompts


def asked_study(config: Config) -> tuple[Config, CompareConfig, list[Arm]]:
    """The config with a test split, and with a scorer where one is needed; the comparison; its arms.

    Raises ConfigError for arms that cannot be had, and where what must choose or be tested is not there.
    """
    compare, arms = asked_arms(config, config.compare or CompareConfig())
    return _with_scorer(_with_test(config, compare), compare, arms), compare, arms


def is_scored(compare: CompareConfig, arms: Sequence[Arm]) -> bool:
    """Whether a study cannot do without a scorer."""
    return compare.primary == "scorer" or any(arm.rewarded or arm.best_of > 1 for arm in arms)


def _with_test(config: Config, compare: CompareConfig) -> Config:
    """A study needs a test split that chooses nothing; the judge needs answers to choose by."""
    if compare.primary == "match" and config.evaluation.match is None:
        raise ConfigError("compare.primary is match, but evaluation.match does not say what must match; give it")
    data = config.data
    if data.test or data.test_split or data.test_size:
        return config
    size = LABORATORY_TEST if config.in_laboratory else data.eval_size
    return changed(config, {"data.test_size": size})


def _with_scorer(config: Config, compare: CompareConfig, arms: Sequence[Arm]) -> Config:
    """All arms are judged by the scorer that one of them, or the verdict, needs."""
    if not is_scored(compare, arms) or config.scorer is not None:
        return config
    return changed(config, {"scorer": wanted_scorer(config).model_dump(mode="json")})
