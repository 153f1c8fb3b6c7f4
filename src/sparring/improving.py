"""The phase that learns from rewards: theta_t+1, a copy of the player that answered, trained on its groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sparring.allowance import Cost, epochs_within
from sparring.config import at
from sparring.data.pairs import Group, Rows
from sparring.errors import LawBroken
from sparring.generation.play import answer_limit
from sparring.learning import budget_of
from sparring.models.adapters import fingerprint_tensors
from sparring.models.base import Base
from sparring.models.flops import Flops
from sparring.policy_task import PolicyTask, group_rows
from sparring.rewarding import settings_of
from sparring.run import Event, Phase
from sparring.schedule import plan_steps
from sparring.session import Session
from sparring.trainer import fit

PASSES = 4.0  # over the same answers, at most, where a budget decides


def improve(session: Session, folder: Path, player: Phase, scored: Phase, data: Phase, *, iteration: int) -> Event:
    """theta_t+1: a copy of theta_t, for which answers with a positive advantage become likelier."""
    config, before = settings_of(session), session.player(player)
    model = session.ring.challenge(before, session.seed("adapter", iteration))
    if scored.facts["seated"] != session.ring.seated:
        raise LawBroken(
            f"law 11: the groups were scored by {scored.facts['seated']}, but the player starts from "
            f"{session.ring.seated}; remove {scored.folder} to score again"
        )
    begun = fingerprint_tensors(session.ring.trainable())
    rows = Rows([scored.folder / "groups.arrow"], Group)
    sizes = _sizes(session.ring.base, rows)
    budget = budget_of(session, folder, group_rows(rows[int(np.argmax(sizes))]))
    limit = answer_limit(session, data)
    task = PolicyTask(session.ring.base, rows, config, limit, budget.tokens, scored.facts["noise"])
    flops, every = Flops.of(model), range(len(rows))
    whole = flops.training(*_trained_lengths(rows, every), sum(sizes), budget.checkpointing)
    once = Cost(len(rows) / config.batch_size, sum(sizes), whole)
    epochs = epochs_within(session, folder, iteration, once, config.epochs, max(PASSES, config.epochs))
    steps = plan_steps(len(rows), config.batch_size, epochs, session.seed("order", iteration))
    stopped = fit(
        session.run, folder, session.ring, task, steps,
        lr=config.lr or at(session.config.selfplay.lr, 0), warmup=config.warmup, schedule=config.schedule,
        optimiser=session.config.optimiser, seed=session.seed("learn", iteration), track=list(session.config.track),
        watch=_watch(config.kl_limit), checkpointing=budget.checkpointing,
    )  # fmt: skip
    if fingerprint_tensors(session.ring.trainable()) == begun:
        raise LawBroken(
            f"law 11: after iteration {iteration} the player is still the one before, bit for bit; it did not learn: "
            "is reinforce.lr far too small?"
        )
    if session.crew.writes:
        session.ring.save(folder, before, session.run.folder, f"{iteration}/player")
    done = max((event["step"] for event in session.run.events() if event["event"] == "step"), default=0)
    items = [item for step in steps[:done] for item in step]
    lengths, answered = _trained_lengths(rows, items)
    tokens = sum(sizes[item] for item in items)
    spent = flops.training(lengths, answered, tokens, budget.checkpointing)
    made = {"stopped": stopped, "steps": done, "tokens": tokens, "flops": spent, "trainable": session.ring.size}
    return {**made, "passes": len(items) / len(rows)}


def _trained_lengths(rows: Rows[Group], items: Sequence[int]) -> tuple[list[int], int]:
    """(length of every row that was trained on, answer tokens in them)."""
    prompts, answers = rows.lengths("prompt_ids"), rows.inner_lengths("answer_ids")
    return [prompts[i] + n - 1 for i in items for n in answers[i]], sum(sum(answers[i]) for i in items)


def _sizes(base: Base, rows: Rows[Group]) -> list[int]:
    """Tokens that each group takes in the base's layout: its prompt once, or once per answer."""
    found = []
    for prompt, answers in zip(rows.lengths("prompt_ids"), rows.inner_lengths("answer_ids"), strict=True):
        asked = (prompt + base.virtual) * (1 if base.layout.packed else len(answers))
        found.append(asked + sum(answers) - len(answers))
    return found


def _watch(limit: float | None) -> Callable[[int, dict[str, float]], str | None]:
    """Ends an iteration that leads too far from theta_0."""

    def watch(step: int, means: dict[str, float]) -> str | None:
        if limit is not None and means["drift"] > limit:
            return f"KL to θ_0 is {means['drift']:.1f} nats per answer (limit {limit:g})"
        return None

    return watch
