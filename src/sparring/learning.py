"""The phases that make players: fine_tune (theta_0) and learn (theta_t+1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from sparring.config import at, learning_rate
from sparring.data.pairs import Pair, Prompt, Rows
from sparring.errors import LawBroken
from sparring.evaluation.nll import mean_nll
from sparring.models.flops import Flops
from sparring.models.players import Player, fingerprint_tensors
from sparring.run import Event, Phase
from sparring.schedule import plan_steps
from sparring.session import Session
from sparring.tasks import PairTask, SFTTask
from sparring.trainer import fit

# ---------------------------------------------------------------- supervised fine-tuning


def fine_tune(session: Session, folder: Path, data: Phase) -> Event:
    """theta_0: a fresh adapter trained on the real answers. With sft.epochs 0, the base itself."""
    config, rows = session.config.sft, session.prompts(data, "train")
    hold = session.config.selfplay.hold
    start = Player.untrained(session.ring.base, hold)
    if config.epochs == 0:
        if session.crew.writes:
            session.ring.save_untrained(folder, hold)
        return {"stopped": None, "tokens": 0, "flops": 0}
    model = session.ring.challenge(start, session.seed("sft adapter"), session.config.method.dropout)
    task = SFTTask(session.ring.base, rows, session.config.optimiser.micro_batch_tokens)
    steps = plan_steps(len(rows), config.batch_size, config.epochs, session.seed("sft order"))
    fit(
        session.run, folder, session.ring, task, steps,
        lr=config.lr, warmup=config.warmup, schedule=config.schedule, optimiser=session.config.optimiser,
        seed=session.seed("sft"), track=list(session.config.track), watch=lambda step, means: None,
    )  # fmt: skip
    if session.crew.writes:
        session.ring.save(folder, start, session.run.folder, "sft")
    prompts, real = rows.lengths("prompt_ids"), rows.lengths("real_ids")
    items = [item for step in steps for item in step]
    lengths = [prompts[i] + real[i] for i in items]
    flops = Flops.of(model).training(lengths, sum(real[i] for i in items))
    return {"stopped": None, "tokens": sum(lengths), "flops": flops}


# ---------------------------------------------------------------- learning


def learn(
    session: Session,
    folder: Path,
    opponent: Phase,
    pairs: Phase,
    data: Phase,
    scores: Phase,
    *,
    iteration: int,
) -> Event:
    """theta_t+1: a copy of the opponent, trained to tell the real answers from the opponent's."""
    config, player = session.config, session.player(opponent)
    model = session.ring.challenge(player, session.seed("adapter", iteration))
    if pairs.facts["seated"] != session.ring.seated:
        raise LawBroken(
            f"law 11: the pairs were scored by {pairs.facts['seated']}, but the player starts from "
            f"{session.ring.seated}; remove {pairs.folder} to score again"
        )
    start = fingerprint_tensors(session.ring.trainable())
    rows = Rows([pairs.folder / "pairs.arrow"], Pair)
    tokens, noise = config.optimiser.micro_batch_tokens, pairs.facts["noise"]
    task = PairTask(session.ring.base, rows, config.selfplay, iteration, tokens, noise)
    epochs = at(config.selfplay.epochs, iteration)
    steps = plan_steps(len(rows), config.selfplay.batch_size, epochs, session.seed("order", iteration))
    stopped = fit(
        session.run, folder, session.ring, task, steps,
        lr=learning_rate(config.selfplay, iteration), warmup=config.selfplay.warmup,
        schedule=config.selfplay.schedule, optimiser=config.optimiser, seed=session.seed("learn", iteration),
        track=list(config.track), watch=_watch(session, data, scores, len(steps)),
    )  # fmt: skip
    if fingerprint_tensors(session.ring.trainable()) == start:
        raise LawBroken(
            f"law 11: after iteration {iteration} the player is still its opponent, bit for bit; "
            "it did not learn: is selfplay.lr far too small?"
        )
    if session.crew.writes:
        session.ring.save(folder, player, session.run.folder, f"{iteration}/player")
    done = max((event["step"] for event in session.run.events() if event["event"] == "step"), default=0)
    lengths, scored = _trained_lengths(rows, steps[:done])
    flops = Flops.of(model).training(lengths, scored)
    return {"stopped": stopped, "tokens": sum(lengths), "flops": flops}


def _trained_lengths(rows: Rows[Pair], steps: list[list[int]]) -> tuple[list[int], int]:
    """(length of every row that was trained on, answer tokens in them)."""
    prompts, real = rows.lengths("prompt_ids"), rows.lengths("real_ids")
    synthetic = rows.inner_lengths("synthetic_ids")
    items = [item for step in steps for item in step]
    lengths = [prompts[i] + n for i in items for n in (real[i], *synthetic[i])]
    return lengths, sum(real[i] + sum(synthetic[i]) for i in items)


def _watch(session: Session, data: Phase, scores: Phase, steps: int) -> Callable[[int, dict[str, float]], str | None]:
    """Ends an iteration that goes wrong: held-out NLL risen, or the real answers' log-prob fallen."""
    config = session.config.selfplay
    every = max(1, math.ceil(steps / config.checks_per_iteration)) if config.checks_per_iteration else 0
    begun: float = scores.facts["nll"]
    held_out: Sequence[Prompt] = session.prompts(data, "eval")[:]

    def watch(step: int, means: dict[str, float]) -> str | None:
        drop = -means["real_shift_per_token"]
        if config.stop_real_drop and drop > config.stop_real_drop:
            return f"the real answers' log-prob per token fell by {drop:.3f} (limit {config.stop_real_drop:g})"
        if every and step % every == 0 and step < steps:
            model = session.ring.model.eval()
            nll = mean_nll(model, session.ring.base, held_out, session.config.optimiser.micro_batch_tokens)
            session.run.log({"event": "check", "step": step, "heldout_nll": nll})
            if config.stop_nll_rise and nll - begun > config.stop_nll_rise:
                return f"held-out NLL per token rose by {nll - begun:.3f} (limit {config.stop_nll_rise:g})"
        return None

    return watch
