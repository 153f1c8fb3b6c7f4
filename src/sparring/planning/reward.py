"""The plan of `sparring reward`: an adapter and a head that put the chosen answer of a pair above the rejected one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sparring.config import Config
from sparring.config_reward import RewardConfig
from sparring.data.collate import Row
from sparring.job import Found
from sparring.models.base import Base
from sparring.models.reward_head import fresh, rewards
from sparring.models.scoring import computed_tokens
from sparring.planning.estimate import Probe, backward_of, facts_of, micro_batch, probe_of, seconds_of
from sparring.planning.sides import Sides, both
from sparring.planning.words import Draft, compared, pair_lengths, pairs_line
from sparring.schedule import plan_steps


def draft(found: Found, base: Base, sides: Sides) -> Draft:
    """What training a reward model would do."""
    config, train, held = found.config, sides.pairs["train"], sides.pairs["eval"]
    settings, estimate = config.reward or RewardConfig(), _estimate(found.config, base, sides)
    more = [f"margin {settings.margin:g}"] if settings.margin else []
    more += [f"labels smoothed by {settings.label_smoothing:g}"] if settings.label_smoothing else []
    begins = "the base with a fresh adapter" if config.start is None else f"the player in {config.start}"
    steps = [
        f"1. learn: {begins} and a linear head at 0; {settings.epochs:g} epochs, {estimate['player_steps'][0]} steps "
        f"of {settings.batch_size} pairs, {', '.join(['−log σ of the reward difference', *more])}, centring "
        f"{settings.centre:g}, lr {settings.lr or config.sft.lr:g} → a reward model",
        f"2. judged on {len(held)} held-out pairs: accuracy beside chance and length, calibration, and a report",
    ]
    about = [pairs_line(train, held, sides.bad)]
    return Draft(about, steps, compared(base.renderer, train[0]), pair_lengths(train), estimate, len(held))


def _estimate(config: Config, base: Base, sides: Sides) -> dict[str, Any]:
    settings, train = config.reward or RewardConfig(), sides.pairs["train"]
    items, held = [both(pair) for pair in train], [both(pair) for pair in sides.pairs["eval"]]
    sizes = [computed_tokens(base, item) for item in items]
    probe = probe_of(config, base, items[max(range(len(items)), key=sizes.__getitem__)])
    learn, look = (_per_token(probe, items, backward) for backward in (True, False))
    seconds = {
        "learn": sum(sizes) * settings.epochs * learn,
        "judge": sum(computed_tokens(base, item) for item in held) * look,
    }
    ids = 4 * sum(len(prompt) + len(answer) for item in [*items, *held] for prompt, answer in item)
    steps = len(plan_steps(len(train), settings.batch_size, settings.epochs, 0))
    return facts_of(probe, seconds, probe.trainable * 4 + ids, pairs=len(train), sft_steps=0, player_steps=[steps])


def _per_token(probe: Probe, items: Sequence[list[Row]], backward: bool) -> float:
    """Seconds per token of a pass that ends in a head of one number."""
    rows, head = micro_batch(probe, items), fresh(probe.base)

    def once() -> None:
        with torch.set_grad_enabled(backward):
            found = rewards(probe.ring.model, probe.base, head, rows).sum()
        if backward:
            backward_of(probe, found)

    return seconds_of(once) / computed_tokens(probe.base, rows)
