"""The plan of `sparring run`: fine-tuning and self-play, and a comparison after it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparring.config import Config
from sparring.config_selfplay import at, learning_rate
from sparring.data.pairs import Prompt
from sparring.job import Found
from sparring.models.base import Base
from sparring.planning.estimate import (
    facts_of,
    judge_seconds,
    mean_tokens,
    per_answer,
    per_example,
    probe_of,
    sft_seconds,
    sft_steps,
    test_seconds,
)
from sparring.planning.sides import Sides
from sparring.planning.words import Draft, first, lengths_of, masked
from sparring.schedule import plan_steps


def draft(found: Found, base: Base, sides: Sides) -> Draft:
    """What self-play would do."""
    config, train = found.config, sides.prompts["train"]
    play, estimate = config.selfplay, _estimate(config, base, sides.prompts)
    steps = [first(config, estimate["sft_steps"])]
    for t in range(play.iterations):
        steps.append(
            f"{t + 2}. iteration {t}: θ_{t} answers {estimate['prompts']} prompts {play.samples}×; "
            f"{estimate['player_steps'][t]} steps of {play.batch_size}, {play.loss} loss, beta {at(play.beta, t):g}, "
            f"lr {learning_rate(play, t):g}, anchor {at(play.anchor, t):g} → θ_{t + 1}; opponent: θ_{t}, never the base"
        )
    steps.append(f"{play.iterations + 2}. the best of all players by held-out {config.evaluation.select}, and a report")
    held_out = len(sides.prompts["eval"])
    return Draft(
        [], steps, masked(base.renderer, train[0]), lengths_of(train), estimate, held_out, _notes(config, estimate)
    )


def _notes(config: Config, estimate: dict[str, Any]) -> list[str]:
    notes, limit = [], config.generation.max_new_tokens
    if limit is not None and limit < estimate["long_answer"]:
        notes.append(
            f"note: a quarter of the real answers is longer than generation.max_new_tokens ({limit}); the opponent's "
            "are cut there, so the player may learn length alone"
        )
    if config.generation.temperature != 1 or config.generation.top_p != 1:
        notes.append("note: with temperature or top_p other than 1 the opponent's answers are not samples of p_θt")
    if config.selfplay.loss == "correlation":
        notes.append("note: the correlation loss is unbounded below; only early stopping ends an iteration")
    return notes


def _estimate(config: Config, base: Base, sides: dict[str, list[Prompt]]) -> dict[str, Any]:
    play, train = config.selfplay, sides["train"]
    rows = 1 + play.samples
    long = max(train, key=lambda p: len(p.prompt_ids) + rows * len(p.real_ids))
    probe = probe_of(config, base, [(long.prompt_ids, long.real_ids)] * rows)
    pairs = [len(train) + (round(len(train) * at(play.previous, t)) if t else 0) for t in range(play.iterations)]
    steps = [len(plan_steps(count, play.batch_size, at(play.epochs, t), 0)) for t, count in enumerate(pairs)]
    learn = per_example(probe, train, backward=True)
    look = per_example(probe, train, backward=False)
    decode = per_answer(probe, train)  # seats a player that trains nothing
    pair = rows * mean_tokens(train)
    if base.layout.packed:
        pair -= play.samples * sum(len(p.prompt_ids) for p in train) / len(train)
    learnt = sum(count * at(play.epochs, t) for t, count in enumerate(pairs)) * pair
    seconds = {
        "SFT": sft_seconds(config, train, learn),
        "play": play.iterations * len(train) * play.samples * decode,
        "score": sum(pairs) * pair * look,
        "learn": learnt * learn,
        "judge": judge_seconds(config, sides["eval"], 2 + play.iterations, decode, look),
        **test_seconds(config, sides, 2 if play.iterations else 1, decode, look),
    }
    ids = sum(len(p.prompt_ids) + rows * len(p.real_ids) for p in train) * 4
    disk = (2 + play.iterations) * probe.trainable * 4 + (1 + 2 * play.iterations) * ids
    return facts_of(
        probe,
        seconds,
        disk,
        prompts=len(train),
        long_answer=int(np.percentile([len(p.real_ids) for p in train], 75)),
        sft_steps=sft_steps(config, train),
        player_steps=steps,
    )
