"""`sparring check`: what a run would do, seen before it does it. Loads the base, trains nothing, writes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml

from sparring.asked import asked_study
from sparring.config import Config, at, learning_rate
from sparring.console import clock
from sparring.data.messages import Renderer, choose_template
from sparring.data.pairs import Prompt
from sparring.data.prepare import prepare
from sparring.generation.local import MOST_ROWS, LocalGenerator, cache_tokens
from sparring.generation.sampling import stream_keys
from sparring.job import Found, identify, run_folder
from sparring.models.base import Base, context_of, load_base, read_config
from sparring.models.head import TILE
from sparring.models.memory import choose_budget, moments
from sparring.models.players import Player, Ring
from sparring.models.quantised import count_parameters, plain_bytes, weight_bytes
from sparring.models.scoring import answer_logprobs
from sparring.rewarding import wanted_scorer
from sparring.rewards.build import check_scorer
from sparring.run import Run
from sparring.saving import saving_lines
from sparring.schedule import plan_steps


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan as text for people and as facts for machines."""

    text: str
    facts: dict[str, Any]


def plan(config: Config) -> Plan:
    """Read config, data and base, time a few passes, and say what the run will do. Raises as `run` would."""
    found = identify(config)
    config = found.config
    folder, renderer, loaded = found.base_folder, found.renderer, found.loaded
    if config.scorer is not None or config.evaluation.best_of > 1:
        check_scorer(wanted_scorer(config), renderer, found.same["base fingerprint"])
    settings = read_config(folder, config.model)
    sides, counts = prepare(loaded, renderer, config.data, context_of(settings), config.method.virtual)
    train, held_out = sides["train"], sides["eval"]
    base = load_base(folder, config.model, renderer)
    parameters = count_parameters(base.model)
    estimate = _estimate(config, base, train, held_out)
    lengths = {
        "prompt": _quantiles([len(p.prompt_ids) for p in train]),
        "answer": _quantiles([len(p.real_ids) for p in train]),
    }
    facts = {
        "run": str(run_folder(config)),
        "parameters": parameters,
        "counts": counts,
        "tokens": lengths,
        "estimate": estimate,
        "config": config.model_dump(mode="json"),
    }
    parts = [
        _what(config, base, parameters, found, estimate),
        _counts(counts, lengths),
        _masked(renderer, train[0]),
        _costs(estimate),
        "config\n" + _indent(yaml.safe_dump(facts["config"], sort_keys=False, allow_unicode=True)),
    ]
    return Plan("\n\n".join(parts), facts)


# ---------------------------------------------------------------- the plan in words


def _what(config: Config, base: Base, parameters: int, found: Found, estimate: dict[str, Any]) -> str:
    play = config.selfplay
    _, template = choose_template(config.model.template, base.renderer.tokenizer)
    ends = ", ".join(repr(base.renderer.tokenizer.decode([token])) for token in base.renderer.end_ids)
    lines = [
        f"run       {_where(config, found)}",
        f"base      {config.model.base}: {parameters:,} parameters, {str(base.dtype).removeprefix('torch.')} on "
        f"{base.device}, context {base.context}",
        f"template  {template}; an answer ends with {ends}",
        f"data      {found.loaded.description}",
        f"layout    {_layout(base)}",
        f"method    {config.method.summary}: {estimate['trainable']:,} trained parameters",
        _first(config, estimate),
    ]
    for t in range(play.iterations):
        lines.append(
            f"{t + 2}. iteration {t}: θ_{t} answers {estimate['prompts']} prompts {play.samples}×; "
            f"{estimate['player_steps'][t]} steps of {play.batch_size}, {play.loss} loss, beta {at(play.beta, t):g}, "
            f"lr {learning_rate(play, t):g}, anchor {at(play.anchor, t):g} → θ_{t + 1}; opponent: θ_{t}, never the base"
        )
    lines.append(f"{play.iterations + 2}. the best of all players by held-out {config.evaluation.select}, and a report")
    if config.compare is not None:
        _, asked, arms = asked_study(config)
        alike = f"at equal {asked.match}" if asked.axis is None else f"along {asked.axis.key}, at the same data"
        lines.append(
            f"then: {len(arms)} arms × {len(asked.seeds)} seeds {alike}, each run of about the time estimated below; "
            f"{asked.target} against {asked.reference} in {asked.primary}, each arm's value tried on "
            f"{min(asked.tune_seeds, len(asked.seeds))} of the seeds"
        )
        if ranked := sum(arm.best_of > 1 for arm in arms):
            lines.append(f"      {ranked} of these arms train nothing: the best of n answers of another one's players")
    limit = config.generation.max_new_tokens
    if limit is not None and limit < estimate["long_answer"]:
        lines.append(
            f"note: a quarter of the real answers is longer than generation.max_new_tokens ({limit}); the opponent's "
            "are cut there, so the player may learn length alone"
        )
    lines += saving_lines(config, base, estimate)
    if len(found.loaded.eval) < 30:
        lines.append(f"note: only {len(found.loaded.eval)} held-out rows: intervals will be rough, or missing")
    if config.generation.temperature != 1 or config.generation.top_p != 1:
        lines.append("note: with temperature or top_p other than 1 the opponent's answers are not samples of p_θt")
    if play.loss == "correlation":
        lines.append("note: the correlation loss is unbounded below; only early stopping ends an iteration")
    return "\n".join(lines)


def _first(config: Config, estimate: dict[str, Any]) -> str:
    """How θ_0 comes about."""
    if config.start is not None:
        return f"1. no SFT: θ_0 is the player in {config.start}"
    steps = f"{estimate['sft_steps']} steps of {config.sft.batch_size}"
    return f"1. SFT: {config.sft.epochs:g} epochs, {steps}, lr {config.sft.lr:g} → θ_0"


def _layout(base: Base) -> str:
    """How answers are scored and trained on, found by numbers on this base."""
    if base.layout.packed:
        return "packed: a prompt is computed once for all its answers, without padding"
    return f"a padded row for each answer; they cannot share their prompt: {base.layout.why}"


def _where(config: Config, found: Found) -> str:
    """The run folder, and whether it is there already."""
    folder = run_folder(config)
    if not (folder / "run.lock.yaml").exists():
        return str(folder)
    difference = Run(folder).difference(found.same)
    return f"{folder} (exists, made with {difference})" if difference else f"{folder} (exists: it would go on)"


def _counts(counts: dict[str, int], lengths: dict[str, dict[str, int]]) -> str:
    lines = ["counts    " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count)]
    for name, quantiles in lengths.items():
        shown = "  ".join(f"{key} {value}" for key, value in quantiles.items())
        lines.append(f"{name + ' tokens':14s}  {shown}")
    return "\n".join(lines)


def _masked(renderer: Renderer, prompt: Prompt) -> str:
    """One example as the model sees it: what it is asked, and between ⟦ and ⟧ what it is trained on."""
    asked = renderer.tokenizer.decode(prompt.prompt_ids, skip_special_tokens=False)
    trained = renderer.tokenizer.decode(prompt.real_ids, skip_special_tokens=False)
    end = "" if prompt.real_ended else "  (cut: no end token)"
    text = f"{_shorten(asked, 900)}⟦{_shorten(trained, 900)}⟧{end}"
    return f"one example ({prompt.source}); only what stands between ⟦ and ⟧ is trained on\n{_indent(text)}"


def _costs(estimate: dict[str, Any]) -> str:
    seconds = estimate["seconds"]
    again = "; layers are computed again in the backward pass, for lack of memory" if estimate["checkpointing"] else ""
    parts = ", ".join(f"{name} {clock(value)}" for name, value in seconds.items())
    return (
        f"estimate  time {clock(sum(seconds.values()))} ({parts}), from a few timed passes on this machine\n"
        f"          memory about {estimate['memory_bytes'] / 2**20:,.0f} MiB, of which the base "
        f"{estimate['base_bytes'] / 2**20:,.0f}{again}\n"
        f"          disk about {estimate['disk_bytes'] / 2**20:,.1f} MiB"
    )


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


def _quantiles(values: Sequence[int]) -> dict[str, int]:
    marks = {"min": 0, "25 %": 25, "median": 50, "75 %": 75, "95 %": 95, "max": 100}
    return {name: int(np.percentile(values, mark)) for name, mark in marks.items()}


# ---------------------------------------------------------------- the estimate


def _estimate(config: Config, base: Base, train: list[Prompt], held_out: list[Prompt]) -> dict[str, Any]:
    """Seconds, bytes and steps. Times come from one forward-backward and a few decoding steps, measured here."""
    play = config.selfplay
    base_bytes, unquantised_bytes = (
        weight_bytes(base.model),
        plain_bytes(base.model, base.dtype),
    )  # before an adapter is on it
    ring = Ring(base, config.method, config.model.base)
    ring.challenge(Player.untrained(base), seed=0)
    trainable = ring.size
    sft = (
        plan_steps(len(train), config.sft.batch_size, config.sft.epochs, 0)
        if config.sft.epochs and config.start is None
        else []
    )
    pairs = [len(train) + (round(len(train) * at(play.previous, t)) if t else 0) for t in range(play.iterations)]
    steps = [len(plan_steps(count, play.batch_size, at(play.epochs, t), 0)) for t, count in enumerate(pairs)]
    mean = sum(len(p.prompt_ids) + len(p.real_ids) for p in train) / len(train)
    learn = _seconds_per_token(ring, config, train, backward=True)
    look = _seconds_per_token(ring, config, train, backward=False)
    rows = 1 + play.samples
    long = max(train, key=lambda p: len(p.prompt_ids) + rows * len(p.real_ids))
    longest = [(long.prompt_ids, long.real_ids)] * rows
    asked = config.optimiser.gradient_checkpointing
    budget = choose_budget(
        ring.model, base, longest, config.optimiser.micro_batch_tokens, None if asked == "auto" else asked
    )
    state = moments(ring.model)
    beside = state if ring.row.whole else state + 4 * trainable
    decode = _seconds_per_answer(ring, config, train)  # seats a player that trains nothing
    pair = rows * mean
    if base.layout.packed:
        pair -= play.samples * sum(len(p.prompt_ids) for p in train) / len(train)
    learnt = sum(count * at(play.epochs, t) for t, count in enumerate(pairs)) * pair
    judged = (2 + play.iterations) * len(held_out) * config.evaluation.samples
    seconds = {
        "SFT": len(train) * config.sft.epochs * mean * learn if sft else 0.0,
        "play": play.iterations * len(train) * play.samples * decode,
        "score": sum(pairs) * pair * look,
        "learn": learnt * learn,
        "judge": judged * (decode + 3 * mean * look),
    }
    ids = sum(len(p.prompt_ids) + rows * len(p.real_ids) for p in train) * 4
    return {
        "prompts": len(train),
        "long_answer": int(np.percentile([len(p.real_ids) for p in train], 75)),
        "trainable": trainable,
        "sft_steps": len(sft),
        "player_steps": steps,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "base_bytes": base_bytes,
        "plain_bytes": unquantised_bytes,
        "checkpointing": budget.checkpointing,
        "free_bytes": budget.free_bytes + state,
        "memory_bytes": base_bytes + beside + budget.peak_bytes + 2 * 4 * TILE[base.device.type],
        "disk_bytes": (2 + play.iterations) * trainable * 4 + trainable * 12 + (1 + 2 * play.iterations) * ids,
    }


def _probe_rows(config: Config, train: list[Prompt]) -> list[tuple[list[int], list[int]]]:
    count = max(1, min(16, config.optimiser.micro_batch_tokens // 512, len(train)))
    return [(p.prompt_ids, p.real_ids) for p in train[:count]]


def _seconds_per_token(ring: Ring, config: Config, train: list[Prompt], backward: bool) -> float:
    """Seconds per prompt or answer token of a pass over a small batch, the faster of two."""
    rows = _probe_rows(config, train)
    best = float("inf")
    for _ in range(2):
        begun = time.perf_counter()
        with torch.set_grad_enabled(backward):
            loss = answer_logprobs(ring.model, ring.base, rows).logprob_A.sum()
        if backward:
            torch.autograd.backward(loss)
            ring.model.zero_grad()
        best = min(best, time.perf_counter() - begun)
    return best / sum(len(prompt) + len(answer) for prompt, answer in rows)


def _seconds_per_answer(ring: Ring, config: Config, train: list[Prompt]) -> float:
    """Seconds per sampled answer when as many are decoded at once as the run would, from 8 decoded tokens."""
    limit = config.generation.max_new_tokens or max(len(p.real_ids) for p in train)
    prompt = max(len(p.prompt_ids) for p in train)
    tokens = config.generation.batch_tokens or cache_tokens(ring.base)
    at_once = max(1, min(len(train), MOST_ROWS, tokens // (prompt + limit)))
    chosen = [train[i % len(train)].prompt_ids for i in range(at_once)]
    merges = config.generation.merge and not ring.base.quantised
    # merged, a player is as fast as the base alone
    model = ring.seat(Player.untrained(ring.base)) if merges else ring.model.eval()
    generator = LocalGenerator(model, ring.base, config.generation)
    keys = stream_keys(0, 0, [0] * at_once, list(range(at_once)))
    generator(chosen, keys, 1)
    times = []
    for tokens in (1, 9):
        begun = time.perf_counter()
        generator(chosen, keys, tokens)
        times.append(time.perf_counter() - begun)
    mean = sum(len(p.real_ids) for p in train) / len(train)
    return (times[0] + max(0.0, times[1] - times[0]) / 8 * mean) / at_once
