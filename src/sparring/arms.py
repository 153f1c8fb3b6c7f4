"""The arms of a comparison: one table, a name → settings on top of the config's own. The runs are ordinary runs.

All start from the same θ_0, where its settings are the same, and learn from the same data. An arm of one's own is a
few lines of YAML under `compare.arms` (docs/compare.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparring.config import ArmConfig, CompareConfig, Config
from sparring.config_dpo import DPOConfig
from sparring.errors import ConfigError, nearest
from sparring.methods import method_of
from sparring.verbs import SECTIONS

Settings = Mapping[str, Any]
_FOLDER = re.compile(r"\w[\w.-]*")
_BEST_OF = re.compile(r"(.+)-best-of-(\d+)")  # ARM-best-of-N
APART = ("seed", "name", "runs", "threads")  # what a study sets for its runs
ALIKE = ("data.test", "evaluation.match", "evaluation.best_of", "scorer", "compare")  # begin what all must share
TEMPERATURES = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25]


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


@dataclass(frozen=True, slots=True)
class Known:
    """A line of the table; `settings` may depend on the config."""

    label: str
    what: str
    settings: Settings | Callable[[Config], Settings]
    key: str | None = "selfplay.lr"
    values: tuple[Any, ...] = ()
    matched: bool = True


_GOES_ON: Settings = {"selfplay.negatives": "none", "selfplay.hold": "continue"}


def anchored(config: Config) -> Settings:
    """Self-play with the config's anchor, or the usual one."""
    return {"selfplay.anchor": config.selfplay.anchor or 0.2}


def _staged(config: Config) -> Settings:
    """Into a quantised base nothing is merged; adapters one upon another are the same function."""
    return {"selfplay.negatives": "none", "selfplay.hold": _stage(config) or "merge"}


def _of_rank(config: Config) -> Settings:
    """As many numbers as all of self-play's adapters together would have, at the same scale alpha/r."""
    try:
        wider = config.method.widened(max(1, config.selfplay.iterations))
    except ValueError as error:
        raise ConfigError(f'arm "rank" cannot be had: {error}; leave it out') from None
    if wider is None or config.start is not None:
        why = "its size is that of `start`" if config.start is not None else f"method {config.method.name} has no size"
        raise ConfigError(f'arm "rank" is an adapter of more parameters, but {why}; leave the arm out')
    return {**_GOES_ON, **{f"method.{key}": value for key, value in wider.items()}}


def _rewarded(config: Config) -> Settings:
    """As many iterations as the config's section `reinforce` says, or self-play has; the section's other keys stay."""
    own = config.reinforce
    return {"reinforce.iterations": max(1, config.selfplay.iterations) if own is None else own.iterations}


def _preferring(config: Config) -> Settings:
    """One iteration on the data's pairs, as the config's section `dpo` says; another arm has no such section."""
    return {"dpo.beta": (config.dpo or DPOConfig()).beta}


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


def _control(negatives: str) -> Callable[[Config], Settings]:
    return lambda config: {**anchored(config), "selfplay.negatives": negatives}


def _prompted(style: str) -> Settings:
    return {"sft.epochs": 0, "selfplay.iterations": 0, "evaluation.prompting.style": style}


_NOT_PLAYED: dict[str, Any] = {"key": None, "matched": False}
KNOWN: dict[str, Known] = {
    "sft": Known("SFT", "fine-tuning alone: θ_0, where all others start", {"selfplay.iterations": 0}, **_NOT_PLAYED),
    "continued": Known(
        "continued SFT",
        "fine-tuning goes on with the same adapter, in as many parts as self-play has iterations",
        _GOES_ON,
    ),
    "stages": Known(
        "staged SFT",
        "fine-tuning goes on in as many stages as self-play has, each merged and begun again with a fresh adapter",
        _staged,
    ),
    "rank": Known(
        "SFT of rank T·r", "fine-tuning from the start, and on, with an adapter of T times the rank", _of_rank
    ),
    "spin": Known("SPIN", "self-play as in the paper", {"selfplay.anchor": 0.0}),
    "spin-anchor": Known("SPIN + anchor", "self-play, with the real answer's NLL in the loss", anchored),
    "stale": Known("stale opponent", "as SPIN + anchor, but θ_0 answers in every iteration", _control("start")),
    "shuffled": Known("shuffled labels", "as SPIN + anchor, but a coin calls an answer real", _control("shuffled")),
    "other-prompt": Known(
        "other prompts", "as SPIN + anchor, but the negatives are other prompts' real answers", _control("other_prompt")
    ),
    "dpo": Known("DPO", "DPO on the data's chosen and rejected answers", _preferring, "dpo.lr"),
    "rl": Known("RL", "θ_0 improved by the scorer's rewards (GRPO)", _rewarded, "reinforce.lr"),
    "temperature": Known(
        "SFT, tempered",
        "θ_0 with its logits divided by a temperature",
        {"selfplay.iterations": 0},
        "evaluation.temperature",
        tuple(TEMPERATURES),
        matched=False,
    ),
    "rules": Known("rule sheet", "the base, told rules in its prompt; no training", _prompted("rules"), **_NOT_PLAYED),
    "few-shot": Known("few-shot", "the base, shown training examples", _prompted("few_shot"), **_NOT_PLAYED),
    "chain-of-thought": Known(
        "chain of thought", "the base, asked to think first", _prompted("chain_of_thought"), **_NOT_PLAYED
    ),
    "reflection": Known(
        "reflection", "the base answers, criticises and revises", _prompted("reflection"), **_NOT_PLAYED
    ),
}
PROMPTED = ("rules", "few-shot", "chain-of-thought", "reflection")
PAIRED = ("dpo",)  # needs data of another kind
SCORED = ("rl",)  # needs a scorer
STANDARD = [name for name in KNOWN if name not in (*PROMPTED, *PAIRED, *SCORED)]
LIKELIHOODS = ("nll", "exact_kl")  # metrics that the best of n answers has no number for


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


def _stage(config: Config) -> str:
    """How a stage is put under the next one; empty if this method cannot be."""
    row = method_of(config.method)
    merges = row.holds("merge") and config.model.quantise == "none" and not config.method.beside
    return "merge" if merges else "stack" if row.holds("stack") and not config.method.beside else ""


def _standard(config: Config) -> list[str]:
    """The standard arms that can be had with this config."""
    sized = config.method.widened(2) is not None and config.start is None
    able = {"rank": sized, "stages": bool(_stage(config))}
    return [name for name in STANDARD if able.get(name, True)]


def _arm(one: ArmConfig, config: Config, compare: CompareConfig) -> Arm:
    name = one.like or one.name
    known = KNOWN.get(name)
    if known is None and (one.like or not (one.settings or one.grid)):
        raise ConfigError(f'arm "{name}" is not known; {nearest(name, KNOWN)}, or give it settings of its own')
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
