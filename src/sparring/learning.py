"""The phases that make players: fine_tune (theta_0) and learn (theta_t+1)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from sparring.allowance import Cost, epochs_within
from sparring.config_selfplay import learning_rate
from sparring.data.collate import Row
from sparring.data.pairs import Pair, Prompt, Rows
from sparring.evaluation.asking import real_rows
from sparring.files import read_json, write_atomic
from sparring.lesson import Sizes, begun, check_learnt, check_scored
from sparring.models.adopt import adopt, other_base
from sparring.models.base import Base, dtype_warning
from sparring.models.flops import Flops
from sparring.models.memory import Budget, choose_budget
from sparring.models.players import Player
from sparring.models.scoring import computed_tokens
from sparring.run import CHECKPOINTS, Event, Phase
from sparring.schedule import plan_steps
from sparring.session import Session
from sparring.stopping import roll_back, stop_for
from sparring.tasks import PairTask, SFTTask, pair_rows
from sparring.trainer import fit
from sparring.watching import watch_for

# ---------------------------------------------------------------- supervised fine-tuning


def fine_tune(session: Session, folder: Path, data: Phase) -> Event:
    """theta_0: a fresh adapter trained on the real answers, as it was at the best check if `sft.stop` asks for any.

    With sft.epochs 0, the base itself; with `start`, that.
    """
    config, rows = session.config.sft, session.prompts(data, "train")
    hold = session.config.selfplay.hold
    start, base, optimiser = Player.untrained(session.ring.base, hold), session.ring.base, session.config.optimiser
    if not base.layout.packed:
        session.run.warn(f"answers cannot share their prompt's pass with this base: {base.layout.why}; it is slower so")
    if said := dtype_warning(session.config.model):
        session.run.warn(said)
    if session.ring.row.whole and base.dtype == torch.bfloat16:
        session.run.warn("every weight trains in bf16, which loses updates below 1/256 of a weight; fp32 keeps them")
    if session.config.start is not None or config.epochs == 0:
        if session.crew.writes:
            write_start(session, folder, "sft")
        return {"stopped": None, "steps": 0, "tokens": 0, "flops": 0, "trainable": 0}
    model = session.ring.challenge(start, session.seed("sft adapter"), session.config.method.sft_dropout)
    sizes, flops = _real_sizes(base, rows), Flops.of(model)
    budget = budget_of(session, folder, real_rows([rows[sizes.longest]]))
    task = SFTTask(base, rows, budget.tokens)
    steps = plan_steps(len(rows), config.batch_size, config.epochs, session.seed("sft order"))
    stopped = fit(
        session.run, folder, session.ring, task, steps,
        lr=config.lr, warmup=config.warmup, schedule=config.schedule, optimiser=optimiser,
        seed=session.seed("sft"), track=list(session.config.track), watch=stop_for(session, folder, data, len(steps)),
        checkpointing=budget.checkpointing,
    )  # fmt: skip
    kept = roll_back(session, folder, config.stop)
    if session.crew.writes:
        session.ring.save(folder, start, session.run.folder, "sft")
    return {**sizes.facts(session, steps, stopped, flops, budget.checkpointing), **kept}


def write_start(session: Session, folder: Path, name: str) -> None:
    """theta_0 without training, in the phase of that name: the player in `start`, or the base."""
    hold, home = session.config.selfplay.hold, session.run.folder
    if session.config.start is None:
        session.ring.save_start(folder, hold, session.seed("sft adapter"), home, name)
    else:
        given = Path(session.config.start).expanduser()
        if said := other_base(given, session.config.model.base):
            session.run.warn(said)
        adopt(session.ring, given, folder, hold, home, name)


# ---------------------------------------------------------------- learning


def learn(
    session: Session,
    folder: Path,
    opponent: Phase,
    pairs: Phase,
    data: Phase,
    scores: Phase,
    valued: Phase | None = None,
    *,
    iteration: int,
) -> Event:
    """theta_t+1: a copy of the opponent, trained to tell the real answers from the opponent's.

    scores  the opponent's own judgement; valued: the scorer's of it, if that may end the iteration
    """
    config, player = session.config, session.player(opponent)
    model = session.ring.challenge(player, session.seed("adapter", iteration))
    check_scored(session, pairs, "pairs")
    start = begun(session)
    rows = Rows([pairs.folder / "pairs.arrow"], Pair)
    sizes, flops = _pair_sizes(session.ring.base, rows), Flops.of(model)
    budget = budget_of(session, folder, pair_rows(rows[sizes.longest]))
    task = PairTask(session.ring.base, rows, config.selfplay, iteration, budget.tokens, *_known(pairs))
    once = one_epoch(sizes, config.selfplay.batch_size, flops, budget)
    epochs = epochs_within(session, folder, iteration, once)
    steps = plan_steps(len(rows), config.selfplay.batch_size, epochs, session.seed("order", iteration))
    stopped = fit(
        session.run, folder, session.ring, task, steps,
        lr=learning_rate(config.selfplay, iteration), warmup=config.selfplay.warmup,
        schedule=config.selfplay.schedule, optimiser=config.optimiser, seed=session.seed("learn", iteration),
        track=list(config.track), watch=watch_for(session, folder, data, scores, valued, len(steps)),
        checkpointing=budget.checkpointing,
    )  # fmt: skip
    check_learnt(session, start, iteration, "its opponent", "its learning rate")
    if session.crew.writes:
        session.ring.save(folder, player, session.run.folder, f"{iteration}/player")
    return sizes.facts(session, steps, stopped, flops, budget.checkpointing)


def go_on(
    session: Session, folder: Path, opponent: Phase, pairs: Phase, data: Phase, scores: Phase,
    valued: Phase | None = None, *, iteration: int,
) -> Event:  # fmt: skip
    """A control: a copy of the player before, trained on the real answers alone. Fine-tuning goes on."""
    config, rows = session.config.selfplay, session.prompts(data, "train")
    player = session.player(opponent)
    model = session.ring.challenge(player, session.seed("adapter", iteration))
    sizes, flops = _real_sizes(session.ring.base, rows), Flops.of(model)
    budget = budget_of(session, folder, real_rows([rows[sizes.longest]]))
    task = SFTTask(session.ring.base, rows, budget.tokens)
    once = one_epoch(sizes, config.batch_size, flops, budget)
    epochs = epochs_within(session, folder, iteration, once)
    steps = plan_steps(len(rows), config.batch_size, epochs, session.seed("order", iteration))
    stopped = fit(
        session.run, folder, session.ring, task, steps,
        lr=learning_rate(config, iteration), warmup=config.warmup, schedule=config.schedule,
        optimiser=session.config.optimiser, seed=session.seed("learn", iteration), track=list(session.config.track),
        watch=watch_for(session, folder, data, scores, valued, len(steps)), checkpointing=budget.checkpointing,
    )  # fmt: skip
    if session.crew.writes:
        session.ring.save(folder, player, session.run.folder, f"{iteration}/player")
    return sizes.facts(session, steps, stopped, flops, budget.checkpointing)


def _known(pairs: Phase) -> tuple[float, float]:
    """(rounding noise of the opponent's log-probs, share of pairs that are thought to be the wrong way round)."""
    return pairs.facts["noise"], pairs.facts.get("flipped", 0.0)


def _real_sizes(base: Base, rows: Rows[Prompt]) -> Sizes:
    """What each real answer takes."""
    return Sizes.of(base, rows.lengths("prompt_ids"), [[length] for length in rows.lengths("real_ids")])


def _pair_sizes(base: Base, rows: Rows[Pair]) -> Sizes:
    """What each pair takes."""
    both = zip(rows.lengths("real_ids"), rows.inner_lengths("synthetic_ids"), strict=True)
    return Sizes.of(base, rows.lengths("prompt_ids"), [[real, *others] for real, others in both])


def one_epoch(sizes: Sizes, per_step: int, flops: Flops, budget: Budget) -> Cost:
    """What all items take once."""
    took = sizes.took(flops, range(len(sizes.tokens)), budget.checkpointing)
    return Cost(len(sizes.tokens) / per_step, took["tokens"], took["flops"])


def budget_of(session: Session, folder: Path, longest: list[Row]) -> Budget:
    """Tokens at once; chosen when the phase begins, and kept when it goes on after a kill with the same settings."""
    return session.crew.decide(lambda: _chosen_budget(session, folder / CHECKPOINTS / "budget.json", longest))


def _chosen_budget(session: Session, path: Path, longest: list[Row]) -> Budget:
    base, optimiser = session.ring.base, session.config.optimiser
    asked = [optimiser.micro_batch_tokens, optimiser.gradient_checkpointing]
    kept = read_json(path) if path.exists() else {}
    if kept.get("asked") == asked:
        return Budget(**kept["budget"])  # though memory may be scarcer now: other sums would end in other bytes
    wanted = None if optimiser.gradient_checkpointing == "auto" else optimiser.gradient_checkpointing
    budget = choose_budget(session.ring.model, base, longest, optimiser.micro_batch_tokens, wanted)
    if not budget.enough:
        session.run.warn(
            f"the longest example ({computed_tokens(base, longest)} tokens) needs about "
            f"{budget.peak_bytes / 2**20:,.0f} MiB to be trained on, but {budget.free_bytes / 2**20:,.0f} are free; "
            "if memory runs out, lower data.max_length"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"asked": asked, "budget": asdict(budget)}))
    return budget
