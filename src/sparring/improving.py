"""The phase that learns from rewards: theta_t+1, a copy of the player that answered, trained on its groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparring.allowance import epochs_within
from sparring.config_selfplay import at
from sparring.data.pairs import Group, Rows
from sparring.generation.play import answer_limit
from sparring.learning import budget_of, one_epoch
from sparring.lesson import Sizes, begun, check_learnt, check_scored
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
    check_scored(session, scored, "groups")
    start = begun(session)
    rows = Rows([scored.folder / "groups.arrow"], Group)
    sizes = Sizes.of(session.ring.base, rows.lengths("prompt_ids"), rows.inner_lengths("answer_ids"))
    budget = budget_of(session, folder, group_rows(rows[sizes.longest]))
    limit = answer_limit(session, data)
    task = PolicyTask(session.ring.base, rows, config, limit, budget.tokens, scored.facts["noise"])
    flops = Flops.of(model)
    once = one_epoch(sizes, config.batch_size, flops, budget)
    epochs = epochs_within(session, folder, iteration, once, config.epochs, max(PASSES, config.epochs))
    steps = plan_steps(len(rows), config.batch_size, epochs, session.seed("order", iteration))
    stopped = fit(
        session.run, folder, session.ring, task, steps,
        lr=config.lr or at(session.config.selfplay.lr, 0), warmup=config.warmup, schedule=config.schedule,
        optimiser=session.config.optimiser, seed=session.seed("learn", iteration), track=list(session.config.track),
        watch=_watch(config.kl_limit), checkpointing=budget.checkpointing,
    )  # fmt: skip
    check_learnt(session, start, iteration, "the one before", "reinforce.lr")
    if session.crew.writes:
        session.ring.save(folder, before, session.run.folder, f"{iteration}/player")
    facts = sizes.facts(session, steps, stopped, flops, budget.checkpointing)
    passes = sum(len(step) for step in steps[: facts["steps"]]) / len(rows)
    # without virtual tokens, as older run folders have it
    return {key: value for key, value in facts.items() if key != "virtual"} | {"passes": passes}


def _watch(limit: float | None) -> Callable[[int, dict[str, float]], str | None]:
    """Ends an iteration that leads too far from theta_0."""

    def watch(step: int, means: dict[str, float]) -> str | None:
        if limit is not None and means["drift"] > limit:
            return f"KL to θ_0 is {means['drift']:.1f} nats per answer (limit {limit:g})"
        return None

    return watch
