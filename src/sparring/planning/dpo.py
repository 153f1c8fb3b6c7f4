"""The plan of `sparring dpo`: a reference that scores both answers of every pair once, and learning from them."""

from __future__ import annotations

from typing import Any

from sparring.config import Config
from sparring.config_dpo import DPOConfig, reference_of
from sparring.config_selfplay import at
from sparring.evaluation.metrics import METRICS
from sparring.job import Found
from sparring.models.base import Base
from sparring.models.scoring import computed_tokens
from sparring.planning.estimate import (
    facts_of,
    judge_seconds,
    mean_tokens,
    per_answer,
    per_example,
    per_token,
    probe_of,
    sft_seconds,
    sft_steps,
    test_seconds,
)
from sparring.planning.sides import Sides, both
from sparring.planning.words import Draft, compared, first, pair_lengths, pairs_line
from sparring.schedule import plan_steps

CHOSEN_BY = {
    "preference": "preference accuracy, θ_0 counting as ½",
    "scorer": "mean reward",
    **{name: METRICS[name].label for name in ("nll", "exact_kl", "match")},
}


def draft(found: Found, base: Base, sides: Sides) -> Draft:
    """What DPO would do."""
    config, train, held = found.config, sides.pairs["train"], sides.pairs["eval"]
    settings, play, estimate = config.dpo or DPOConfig(), config.selfplay, _estimate(found.config, base, sides)
    chosen = f", on {len(sides.prompts['train'])} chosen answers, each once" if estimate["sft_steps"] else ""
    told = f", labels smoothed by {settings.label_smoothing:g}" if settings.label_smoothing else ""
    steps = [
        f"{first(config, estimate['sft_steps'])}{chosen}",
        f"2. score: log p of both answers of {len(train) + len(held)} pairs under θ_0, once",
        f"3. DPO: {_much(config, estimate)} pairs, {settings.loss} loss of log-probs by {play.reduction}{told}, beta "
        f"{settings.beta:g}, lr {at(play.lr, 0):g}, anchor {settings.anchor:g} → θ_1; nobody plays",
        f"4. held out: {len(held)} pairs for θ_1's preference accuracy, beside length and the reference's likelihood; "
        f"NLL of {len(sides.prompts['eval'])} chosen answers, and answers to their prompts, for the base, θ_0 and θ_1",
        f"5. θ_0 or θ_1 by held-out {CHOSEN_BY[settings.select]}, and a report",
    ]
    about = [
        pairs_line(train, held, sides.bad),
        f"          {reference_of(config.start, config.sft.epochs, config.model.base)}",
    ]
    return Draft(about, steps, compared(base.renderer, train[0]), pair_lengths(train), estimate, len(held))


def _much(config: Config, estimate: dict[str, Any]) -> str:
    budget, size = config.selfplay.budget, config.selfplay.batch_size
    if budget is not None:
        return f"what a budget of {budget.amount:g} {budget.unit} leaves, in steps of {size}"
    return f"{at(config.selfplay.epochs, 0):g} epochs, {estimate['player_steps'][0]} steps of {size}"


def _estimate(config: Config, base: Base, sides: Sides) -> dict[str, Any]:
    play, train, chosen = config.selfplay, sides.pairs["train"], sides.prompts["train"]
    items, held = [both(pair) for pair in train], [both(pair) for pair in sides.pairs["eval"]]
    sizes = [computed_tokens(base, item) for item in items]
    probe = probe_of(config, base, items[max(range(len(items)), key=sizes.__getitem__)])
    learn, look = (per_token(probe, items, backward) for backward in (True, False))
    fitted = per_example(probe, chosen, backward=True)
    decode = per_answer(probe, chosen)
    tokens, held_tokens = sum(sizes), sum(computed_tokens(base, item) for item in held)
    checks = play.checks_per_iteration * mean_tokens(sides.prompts["eval"]) * len(sides.prompts["eval"])
    seconds = {
        "SFT": sft_seconds(config, chosen, fitted),
        "score": tokens * look,
        "learn": tokens * at(play.epochs, 0) * learn + checks * look,
        "judge": judge_seconds(config, sides.prompts["eval"], 3, decode, look) + 2 * held_tokens * look,
        **test_seconds(config, sides.prompts, 2, decode, look),
    }
    ids = 4 * sum(len(prompt) + len(answer) for item in [*items, *held] for prompt, answer in item)
    return facts_of(
        probe,
        seconds,
        3 * probe.trainable * 4 + 3 * ids,  # the pairs, the chosen answers, and the pairs with their log-probs
        pairs=len(train),
        sft_steps=sft_steps(config, chosen),
        player_steps=[len(plan_steps(len(train), play.batch_size, at(play.epochs, 0), 0))],
    )
