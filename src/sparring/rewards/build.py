"""The one table of scorers: a name → its settings, what can be said before a model is loaded, and how it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.data.messages import Renderer
from sparring.models.base import load_base
from sparring.models.players import Ring
from sparring.rewards import text
from sparring.rewards.implicit import ImplicitScorer, check_implicit, implicit_fingerprint
from sparring.rewards.model import ModelScorer, check_reward, find_reward
from sparring.rewards.scorer import Scorer
from sparring.rewards.settings import (
    FunctionScore,
    ImplicitScore,
    MatchScore,
    ModelScore,
    RegexScore,
    ScorerSettings,
    ValidityScore,
)
from sparring.session import Session

CHECKED = 8192  # tokens at once, where nobody says how many


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table.

    make   (settings, ring, tokens at once) → the scorer
    check  (settings, renderer, the base's fingerprint) → its fingerprint, before a model is loaded; raises RewardError
           or ConfigError for what does not fit
    seats  whether it takes the ring's seat for a model of its own
    """

    settings: type[ScorerSettings]
    make: Callable[[Any, Ring, int], Scorer]
    check: Callable[[Any, Renderer, str], str]
    seats: bool = True


def _model(settings: ModelScore, renderer: Renderer, base: str) -> str:
    made = find_reward(Path(settings.path))
    check_reward(made, base, renderer)
    return made.fingerprint


def _implicit(settings: ImplicitScore, renderer: Renderer, base: str) -> str:
    check_implicit(settings, base)
    return implicit_fingerprint(settings)


def _text(settings: type[ScorerSettings], make: Callable[[Any, Renderer], text.TextScorer]) -> Kind:
    return Kind(
        settings,
        lambda chosen, ring, tokens: make(chosen, ring.base.renderer),
        lambda chosen, renderer, base: make(chosen, renderer).fingerprint,
        seats=False,
    )


SCORERS: dict[str, Kind] = {
    "model": Kind(ModelScore, lambda s, ring, tokens: ModelScorer(ring, find_reward(Path(s.path)), tokens), _model),
    "implicit": Kind(ImplicitScore, lambda s, ring, tokens: ImplicitScorer(ring, s, tokens), _implicit),
    "match": _text(MatchScore, text.match),
    "regex": _text(RegexScore, text.regex),
    "function": _text(FunctionScore, text.function),
    "validity": _text(ValidityScore, text.validity),
}


def make_scorer(settings: ScorerSettings, ring: Ring, tokens: int = CHECKED) -> Scorer:
    """The scorer that a section asks for, on a ring. tokens: how many a forward pass may hold."""
    return SCORERS[settings.name].make(settings, ring, tokens)


def build_scorer(settings: ScorerSettings, session: Session) -> Scorer:
    """The scorer of a run."""
    return make_scorer(settings, session.ring, session.config.optimiser.micro_batch_tokens)


def build_beside(settings: ScorerSettings, session: Session) -> Scorer:
    """The same, while a player is being trained on the run's ring: one with a model gets a base of its own."""
    if not SCORERS[settings.name].seats:
        return build_scorer(settings, session)
    config = session.config
    base = load_base(session.base_folder, config.model, session.renderer)
    ring = Ring(base, config.method, config.model.base)
    return make_scorer(settings, ring, config.optimiser.micro_batch_tokens)


def check_scorer(settings: ScorerSettings, renderer: Renderer, base_fingerprint: str) -> str:
    """The scorer's fingerprint, after all that can be found wrong with it before a model is loaded."""
    return SCORERS[settings.name].check(settings, renderer, base_fingerprint)
