"""What a study is asked for: its config with what every study needs, and its arms, before anything is run."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.arms import Arm, prefers, rewarded
from sparring.axis import asked_arms
from sparring.config import CompareConfig, Config
from sparring.configfile import changed
from sparring.data.preferences import check_pairs
from sparring.data.selfplayed import is_run
from sparring.errors import ConfigError
from sparring.rewarding import wanted_scorer

LABORATORY_TEST = 300  # prompts
OF_A_RUN = 0.5  # of its held-out prompts


def asked_study(config: Config) -> tuple[Config, CompareConfig, list[Arm]]:
    """The config with a test split, and with a scorer where one is needed; the comparison; its arms.

    Raises ConfigError or DataError for arms that cannot be had, and where what must choose or be tested is not there.
    """
    compare, arms = asked_arms(config, config.compare or CompareConfig())
    return _with_scorer(_with_pairs(_with_test(config, compare), arms), compare, arms), compare, arms


def is_scored(compare: CompareConfig, arms: Sequence[Arm]) -> bool:
    """Whether a study cannot do without a scorer."""
    return compare.primary == "scorer" or any(rewarded(arm) or arm.best_of > 1 for arm in arms)


def _with_test(config: Config, compare: CompareConfig) -> Config:
    """A study needs a test split that chooses nothing; the judge needs answers to choose by."""
    if compare.primary == "match" and config.evaluation.match is None:
        raise ConfigError("compare.primary is match, but evaluation.match does not say what must match; give it")
    data = config.data
    if data.test or data.test_split or data.test_size:
        return config
    size = LABORATORY_TEST if config.in_laboratory else OF_A_RUN if is_run(data.train) else data.eval_size
    return changed(config, {"data.test_size": size})


def _with_pairs(config: Config, arms: Sequence[Arm]) -> Config:
    """Where an arm learns from pairs, the chosen answers are real ones for all; DataError if there are none."""
    arm = next((arm for arm in arms if prefers(arm)), None)
    if arm is None:
        return config
    check_pairs(config.data, config.seed, f'arm "{arm.name}"')
    return changed(config, {"data.answers": "chosen"})


def _with_scorer(config: Config, compare: CompareConfig, arms: Sequence[Arm]) -> Config:
    """All arms are judged by the scorer that one of them, or the verdict, needs."""
    if not is_scored(compare, arms) or config.scorer is not None:
        return config
    return changed(config, {"scorer": wanted_scorer(config).model_dump(mode="json")})
