"""Best of n: a player answers a prompt n times, and a scorer chooses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparring.config import Config
from sparring.errors import InputError
from sparring.models.players import Ring
from sparring.rewards.build import make_scorer
from sparring.rewards.model import find_reward
from sparring.rewards.rank import best, kl_bound
from sparring.rewards.scorer import Answered, Scorer
from sparring.rewards.settings import ModelScore, ScorerSettings


def chooser_settings(config: Config, path: str | None, best_of: int) -> ScorerSettings | None:
    """What chooses among `best_of` answers: the reward model at `path`, else the config's scorer; None for one answer.

    Raises InputError or RewardError where there is none, or it cannot judge answers to prompts without a real one.
    """
    if best_of == 1:
        if path is not None:
            raise InputError("--scorer chooses among several answers; give --best-of 2 or more, or leave it out")
        return None
    settings = config.scorer if path is None else ModelScore(path=path)
    if settings is None:
        raise InputError(
            f"--best-of {best_of} needs a scorer that says which answer is best, and this run's config has none; give "
            "--scorer, the folder of a run of `sparring reward`"
        )
    if settings.name == "match":
        raise InputError(
            "scorer match compares an answer with the real one, which nobody knows here; give --scorer, the folder of "
            "a run of `sparring reward`"
        )
    if isinstance(settings, ModelScore):
        find_reward(Path(settings.path).expanduser())
    return settings


def chooser(config: Config, ring: Ring, path: str | None, best_of: int) -> Scorer | None:
    """The scorer itself, on the ring; as `chooser_settings`."""
    settings = chooser_settings(config, path, best_of)
    return None if settings is None else make_scorer(settings, ring, config.optimiser.micro_batch_tokens)


def choose_best(scorer: Scorer, prompt_ids: list[int], answers: Sequence[list[int]]) -> tuple[int, list[float]]:
    """(which of the answers, as token ids, is best; the scores of all). The scorer may take the ring's seat."""
    scores = scorer([Answered(prompt_ids, ids, []) for ids in answers])
    return best(scores), scores


def said_of_choice(scorer: Scorer, scores: Sequence[float]) -> str:
    """What choosing did, in words."""
    mean = sum(scores) / len(scores)
    return (
        f"best of {len(scores)} by {scorer.label}: {max(scores):.4g}, the mean of all {mean:.4g}; KL from the player "
        f"at most {kl_bound(len(scores)):.2f} nats"
    )
