"""The plan of `sparring reinforce`: groups of answers, what a scorer says of them, and learning from it."""

from __future__ import annotations

from typing import Any

from sparring.config import Config
from sparring.config_reinforce import ReinforceConfig
from sparring.config_selfplay import at
from sparring.data.collate import Row
from sparring.data.pairs import Prompt
from sparring.job import Found
from sparring.models.base import Base
from sparring.models.scoring import computed_tokens
from sparring.objectives.policy_gradient import WITHOUT_BASELINE
from sparring.planning.estimate import (
    Probe,
    answer_limit_of,
    facts_of,
    judge_seconds,
    per_answer,
    per_example,
    per_token,
    probe_of,
    sampled,
    sft_seconds,
    sft_steps,
    test_seconds,
)
from sparring.planning.sides import Sides
from sparring.planning.words import Draft, as_read, first, indent, lengths_of, shorten
from sparring.rewarding import wanted_scorer, worth
from sparring.rewards.build import SCORERS, make_scorer
from sparring.rewards.scorer import Answered
from sparring.schedule import plan_steps

IN_EXAMPLE = 4  # sampled answers that are shown


def draft(found: Found, base: Base, sides: Sides) -> Draft:
    """What reinforcement learning would do."""
    config, train = found.config, sides.prompts["train"]
    settings, wanted = config.reinforce or ReinforceConfig(), wanted_scorer(config)
    probe, estimate = _estimate(config, base, sides.prompts)
    rate = settings.lr or at(config.selfplay.lr, 0)
    steps = [
        first(config, estimate["sft_steps"]),
        f"2. iteration 0: θ_0 answers {estimate['prompts']} prompts {settings.samples}×; the scorer's rewards; log p "
        f"of every token under θ_0; {settings.algorithm} on at most {estimate['prompts']} groups of {settings.samples}"
        f", {estimate['player_steps'][0]} steps of {settings.batch_size} groups, lr {rate:g}, KL to θ_0 × "
        f"{settings.beta:g} → θ_1",
    ]
    if last := settings.iterations - 1:
        which = "iteration 1" if last == 1 else f"iterations 1 to {last}"
        steps.append(f"3. {which}: the same with θ_t, every token scored under θ_t and under θ_0 → θ_{last + 1}")
    held = len(sides.prompts["eval"])
    steps.append(
        f"{len(steps) + 1}. the best of all players by the scorer's mean on {held} held-out prompts, held-out "
        "NLL beside it, and a report"
    )
    equal = "teaches too" if settings.algorithm in WITHOUT_BASELINE else "teaches nothing, and is skipped"
    about = [
        f"scorer    {wanted.name}, {estimate['scored']:,} answers to be scored to learn from them; a group of equal "
        f"rewards {equal}"
    ]
    return Draft(about, steps, _example(probe, config, train[0]), lengths_of(train), estimate, held)


def _example(probe: Probe, config: Config, prompt: Prompt) -> str:
    """A prompt, and answers of the base with what they are worth, where the scorer needs no model to say it."""
    settings, wanted = config.reinforce or ReinforceConfig(), wanted_scorer(config)
    renderer = probe.base.renderer
    count = min(IN_EXAMPLE, settings.samples)
    limit = answer_limit_of(config, [prompt])
    answers = [prompt.real_ids, *(one.ids for one in sampled(probe, prompt, count, limit))]
    worths = [""] * len(answers)
    if not SCORERS[wanted.name].seats:
        asked = [Answered(prompt.prompt_ids, ids, prompt.real_ids) for ids in answers]
        worths = [f"  worth {value:g}" for value in worth(make_scorer(wanted, probe.ring), asked)]
    before = shorten(as_read(renderer, prompt.prompt_ids))
    said = [f"{before}⟦{shorten(as_read(renderer, ids))}⟧{told}" for ids, told in zip(answers, worths, strict=True)]
    return (
        f"one prompt ({prompt.source}): its real answer, then {count} of a group of {settings.samples}, here as the "
        "base gives them, before anything is trained\n" + "\n".join(indent(line) for line in said)
    )


def _estimate(config: Config, base: Base, sides: dict[str, list[Prompt]]) -> tuple[Probe, dict[str, Any]]:
    settings, train = config.reinforce or ReinforceConfig(), sides["train"]
    asked = min(settings.prompts or len(train), len(train))
    groups = [_group(prompt, settings.samples) for prompt in train]
    sizes = [computed_tokens(base, group) for group in groups]
    probe = probe_of(config, base, groups[max(range(len(groups)), key=sizes.__getitem__)])
    learn, look = (per_token(probe, groups, backward) for backward in (True, False))
    fitted = per_example(probe, train, backward=True)
    decode = per_answer(probe, train)
    tokens = asked * sum(sizes) / len(sizes)  # of an iteration's groups
    times, scored = settings.iterations, settings.iterations * asked * settings.samples
    passes = {"model": 1, "implicit": 2}.get(wanted_scorer(config).name, 0)  # over an answer, to score it
    judged = (2 + times) * len(sides["eval"]) * config.evaluation.samples
    mean = sum(sizes) / len(sizes) / settings.samples
    seconds = {
        "SFT": sft_seconds(config, train, fitted),
        "play": scored * decode,
        "reward": scored * mean * passes * look,
        "score": (2 * times - 1) * tokens * look,
        "learn": times * tokens * settings.epochs * learn,
        "judge": judge_seconds(config, sides["eval"], 2 + times, decode, look) + judged * mean * passes * look,
        **test_seconds(config, sides, 2, decode, look),
    }
    ids = 4 * sum(len(prompt) + len(answer) for group in groups for prompt, answer in group) * asked / len(train)
    return probe, facts_of(
        probe,
        seconds,
        (2 + times) * probe.trainable * 4 + times * 4 * ids,  # answers, and with them two log-probs of every token
        prompts=asked,
        scored=scored,
        sft_steps=sft_steps(config, train),
        player_steps=[len(plan_steps(asked, settings.batch_size, settings.epochs, 0))] * times,
    )


def _group(prompt: Prompt, samples: int) -> list[Row]:
    """A group as large as if every answer were as long as the real one."""
    return [(prompt.prompt_ids, prompt.real_ids)] * samples
