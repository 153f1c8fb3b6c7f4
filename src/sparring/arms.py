"""The arms of a comparison: settings on top of the config's own. The runs are ordinary runs.

All start from the same θ_0, where its settings are the same, and learn from the same data. known_arms.py has the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparring.config import ArmConfig, CompareConfig, Config
from sparring.errors import ConfigError, nearest
from sparring.known_arms import KNOWN, LIKELIHOODS, STANDARD, Known, Settings, stage
from sparring.verbs import SECTIONS

_FOLDER = re.compile(r"\w[\w.-]*")
_BEST_OF = re.compile(r"(.+)-best-of-(\d+)")  # ARM-best-of-N
APART = ("seed", "name", "runs", "threads")  # what a study sets for its runs
ALIKE = ("data.test", "evaluation.match", "evaluation.best_of", "scorer", "compare")  # begin what all must share


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm: what it is called and is, its settings, and a key whose value is chosen on held-out data.

    key      None: nothing is chosen
    matched  whether it gets the target's budget; fine-tuning alone and prompting do not play
    after    the arm that is made first: its θ_0 is copied where it would be the same, its choice taken over
    shares   the values are these shares of what `after` chose; empty: they stand as they are
    widens   how many values may be tried beyond the end of the grid, while the best lies there
    against  the arms it is compared with in the verdict's family; None: those of `compare`
    best_of  above 1: the players of `after`, tested with the best of so many answers; nothing is trained
    """

    name: str
    label: str
    what: str
    settings: Settings
    key: str | None = "selfplay.lr"
    values: list[Any] = field(default_factory=list)
    matched: bool = True
    after: str | None = None
    shares: tuple[float, ...] = ()
    widens: int = 0
    against: tuple[str, ...] | None = None
    best_of: int = 1


@dataclass(frozen=True, slots=True)
class Ran:
    """An arm's runs: the value chosen from its grid, the grid's results on held-out data, a folder for each seed."""

    arm: Arm
    chosen: Any
    validation: list[float | None]
    folders: list[Path]


def prefers(arm: Arm) -> bool:
    """Whether an arm learns from preference pairs."""
    return "dpo" in sections(arm)


def rewarded(arm: Arm) -> bool:
    """Whether an arm learns from a scorer's rewards."""
    return "reinforce" in sections(arm)


def sections(arm: Arm) -> set[str]:
    """The sections of verbs other than `run` that an arm has keys of."""
    keys = [*arm.settings, *([arm.key] if arm.key else [])]
    return {key.split(".")[0] for key in keys} & set(SECTIONS)


def chosen_arms(config: Config, compare: CompareConfig) -> list[Arm]:
    """The arms that a config asks for, in its order; target, reference, SFT, and that of which the best of n answers is
    taken, are added if they are not named.

    Raises ConfigError for an unknown arm, one that is named twice, an empty grid, or the best of n answers where the
    primary metric has no number for it.
    """
    if config.evaluation.best_of > 1 and compare.primary in LIKELIHOODS:
        raise ConfigError(
            f"evaluation.best_of {config.evaluation.best_of} leaves the test without {compare.primary}, which is "
            "compare.primary; set that to scorer or match, or leave best_of out and name arms ARM-best-of-N"
        )
    asked: dict[str, ArmConfig] = {}
    for one in _standard(config) if compare.arms is None else compare.arms:
        given = one if isinstance(one, ArmConfig) else ArmConfig(name=one)
        if given.name in asked:
            raise ConfigError(f'compare.arms names "{given.name}" twice; give each arm a name of its own')
        asked[given.name] = given
    for name in ("sft", compare.target, compare.reference):
        asked.setdefault(name, ArmConfig(name=name))
    ranked = {name: (found[1], int(found[2])) for name in asked if (found := _BEST_OF.fullmatch(name))}
    for name, _ in ranked.values():
        asked.setdefault(name, ArmConfig(name=name))
    arms = {name: _arm(one, config, compare) for name, one in asked.items() if name not in ranked}
    for name, (of, many) in ranked.items():
        arms[name] = _ranked(asked[name], arms.get(of), many, compare)
    if not arms[compare.target].matched:
        raise ConfigError(
            f'compare.target "{compare.target}" spends nothing on self-play, so no budget can be made equal; '
            "give an arm that plays, such as spin"
        )
    if compare.target == compare.reference:
        raise ConfigError(f'compare.target and compare.reference are both "{compare.target}"; give two arms')
    return [arms[name] for name in asked]


def _ranked(one: ArmConfig, arm: Arm | None, many: int, compare: CompareConfig) -> Arm:
    """The players of `arm`, tested with the best of `many` answers."""
    if arm is None or many < 2:
        raise ConfigError(f'arm "{one.name}" is not known; give ARM-best-of-N, where ARM is an arm and N is 2 or more')
    if one.like or one.settings or one.grid:
        raise ConfigError(f'arm "{one.name}" is a test of {arm.name}\'s players; give its settings to {arm.name}')
    if compare.primary in LIKELIHOODS:
        raise ConfigError(
            f'arm "{one.name}": the best of {many} answers has no likelihood, and so no {compare.primary}, which is '
            "compare.primary; set that to scorer or match, or leave the arm out"
        )
    what = f"the same players; of {many} answers the one that the scorer puts first, so each costs {many} times"
    return replace(
        arm, name=one.name, label=f"{arm.label}, best of {many}", what=one.what or what, best_of=many, after=arm.name,
        settings={**arm.settings, "evaluation.best_of": many}, key=None, values=[],
        matched=arm.matched and compare.target not in (arm.name, one.name),
    )  # fmt: skip


def _standard(config: Config) -> list[str]:
    """The standard arms that can be had with this config."""
    sized = config.method.widened(2) is not None and config.start is None
    able = {"rank": sized, "stages": bool(stage(config))}
    return [name for name in STANDARD if able.get(name, True)]


def _arm(one: ArmConfig, config: Config, compare: CompareConfig) -> Arm:
    name = one.like or one.name
    known = KNOWN.get(name)
    if known is None and (one.like or not (one.settings or one.grid)):
        hint = nearest(name, KNOWN)
        raise ConfigError(f'arm "{name}" is not known; {hint}, or give ARM-best-of-N, or give it settings of its own')
    if not _FOLDER.fullmatch(one.name):
        raise ConfigError(f'arm "{one.name}" is not a folder name; give letters, digits, -, _ and . only')
    own = dotted(one.settings)
    learns = "reinforce.lr" if any(key.startswith("reinforce.") for key in own) else "selfplay.lr"
    known = known or Known(one.name, "", {}, learns)
    settings = known.settings(config) if callable(known.settings) else known.settings
    key, values = known.key, list(known.values) or learning_rates(config, compare)
    if one.grid:
        if len(one.grid) != 1 or not all(one.grid.values()):
            raise ConfigError(f'arm "{one.name}": grid holds {dict(one.grid)}; give one key with a list of values')
        ((key, values),) = one.grid.items()
    touched = [*settings, *own, *([key] if key else [])]
    apart = next((k for k in touched if k.startswith(ALIKE) or k in APART), None)
    if apart:
        raise ConfigError(f'arm "{one.name}" changes {apart}; all arms are tested alike, so set it for the whole study')
    key = _of_pairs(one, key, touched)
    if one.name == "sft" and one.grid:
        raise ConfigError('arm "sft" has a grid, but all other arms start from it; give its settings one value each')
    label = known.label if name == one.name else one.name
    values, after = values if key else [], None if one.name == "sft" else "sft"
    return Arm(one.name, label, one.what or known.what, {**settings, **own}, key, values, known.matched, after)


def _of_pairs(one: ArmConfig, key: str | None, touched: list[str]) -> str | None:
    """The key that is tuned: of an arm with keys of `dpo` its own rate, for those of `selfplay` do nothing there."""
    if not any(name.startswith("dpo.") for name in touched):
        return key
    idle = next((name for name in touched if name.startswith("selfplay.") and name != key), None)
    if idle or (one.grid and str(key).startswith("selfplay.")):
        raise ConfigError(f'arm "{one.name}" learns from pairs, where {idle or key} does nothing; give keys of dpo')
    return "dpo.lr" if key == "selfplay.lr" else key


def dotted(settings: Settings, above: str = "") -> dict[str, Any]:
    """Settings with nested sections written out: `{selfplay: {beta: 1}}` is `{selfplay.beta: 1}`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inside = isinstance(value, dict) and f"{above}{key}" != "data.columns"
        found |= dotted(value, f"{above}{key}.") if inside else {f"{above}{key}": value}
    return found


def learning_rates(config: Config, compare: CompareConfig) -> list[float]:
    """The grid for every arm: `compare.lr`, or three from self-play's learning rate to fine-tuning's."""
    if compare.lr is not None:
        return list(dict.fromkeys(compare.lr))
    play = config.selfplay.lr
    low, high = (play[0] if isinstance(play, list) else play), config.sft.lr
    return list(dict.fromkeys((low, float(f"{(low * high) ** 0.5:.2g}"), high)))
