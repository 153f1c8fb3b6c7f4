"""The arms that have a name: one table, a name → label, what it is, settings on top of the config's own, a key to tune.

Another arm is a line here; an arm of one's own is a few lines of YAML under `compare.arms` (docs/compare.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparring.config import Config
from sparring.config_dpo import DPOConfig
from sparring.errors import ConfigError
from sparring.methods import method_of

Settings = Mapping[str, Any]
TEMPERATURES = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25]


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
    return {"selfplay.negatives": "none", "selfplay.hold": stage(config) or "merge"}


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
    "rl": Known("RL", "θ_0 improved by the scorer's rewards", _rewarded, "reinforce.lr"),
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


def stage(config: Config) -> str:
    """How a stage is put under the next one; empty if this method cannot be."""
    row = method_of(config.method)
    merges = row.holds("merge") and config.model.quantise == "none" and not config.method.beside
    return "merge" if merges else "stack" if row.holds("stack") and not config.method.beside else ""
