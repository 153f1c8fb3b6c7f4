"""Reward modelling: people's comparisons distilled into a number for an answer.

    input   prompts x_i, each with a chosen answer y_w and a rejected one y_l
    r(x, y) = w·h(x, y), the last hidden state of the answer's last token, by the base with an adapter
    learn   argmin over adapter and w of  Σ_i  -log σ( r(x_i, y_w) - r(x_i, y_l) )
    output  an ordinary PEFT adapter with head.safetensors beside it, and how far it can be trusted

`once` makes a phase or finds it finished, as in selfplay.py: resuming a killed run is calling this again.
"""

from __future__ import annotations

from pathlib import Path

from sparring.config_reward import RewardConfig
from sparring.evaluation.rewarded import judge_reward
from sparring.learning import budget_of, write_start
from sparring.lesson import Sizes
from sparring.models.base import dtype_warning
from sparring.models.flops import Flops
from sparring.models.players import Player
from sparring.models.reward_head import fresh, put_on, take_off
from sparring.preparing import preferences, prepare_compared
from sparring.reward_task import RewardTask, compared_rows
from sparring.rewards.model import save_reward
from sparring.run import Event, Phase
from sparring.schedule import plan_steps
from sparring.session import Session
from sparring.trainer import fit


def train_reward(session: Session) -> Phase:
    """The whole of it; returns the phase that says how good the reward model is."""
    once = session.once
    data = once("data", prepare_compared)
    start = once("start", begin) if session.config.start is not None else None
    made = once("reward", learn_reward, data, start)
    return once("reward-scores", judge_reward, data, made)


def begin(session: Session, folder: Path) -> Event:
    """The player in `start`, on which the reward model is trained on."""
    if session.crew.writes:
        write_start(session, folder, "start")
    return {}


def learn_reward(session: Session, folder: Path, data: Phase, start: Phase | None) -> Event:
    """Train an adapter and the head on the pairs."""
    config, base, optimiser = session.config.reward or RewardConfig(), session.ring.base, session.config.optimiser
    if not base.layout.packed:
        session.run.warn(f"the two answers cannot share their prompt's pass with this base: {base.layout.why}")
    if said := dtype_warning(session.config.model):
        session.run.warn(said)
    rows = preferences(data, "train")
    before = session.player(start) if start else Player.untrained(base, session.config.selfplay.hold)
    model = session.ring.challenge(before, session.seed("reward adapter"))
    both = zip(rows.lengths("chosen_ids"), rows.lengths("rejected_ids"), strict=True)
    sizes = Sizes.of(base, rows.lengths("prompt_ids"), [[*pair] for pair in both], whole=True)
    budget = budget_of(session, folder, compared_rows(rows[sizes.longest]))
    head = fresh(base)
    put_on(base, head)
    try:
        task = RewardTask(base, head, rows, config, budget.tokens)
        steps = plan_steps(len(rows), config.batch_size, config.epochs, session.seed("reward order"))
        stopped = fit(
            session.run, folder, session.ring, task, steps,
            lr=config.lr or session.config.sft.lr, warmup=config.warmup, schedule=config.schedule,
            optimiser=optimiser, seed=session.seed("reward"), track=list(session.config.track),
            watch=lambda step, means: None, checkpointing=budget.checkpointing,
        )  # fmt: skip
        trainable = session.ring.size
    finally:
        take_off(base)
    if session.crew.writes:
        player = session.ring.save(folder, before, session.run.folder, "reward")
        save_reward(folder, session.renderer, player, head)
    facts = sizes.facts(session, steps, stopped, Flops.of(model), budget.checkpointing)
    return {**facts, "trainable": trainable}
