"""The phases that make players: fine_tune (theta_0) and learn (theta_t+1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from sparring.allowance import Cost, epochs_within
from sparring.config import learning_rate
from sparring.data.collate import Row
from sparring.data.pairs import Pair, Rows
from sparring.errors import LawBroken
from sparring.files import read_json, write_atomic
from sparring.models.adapters import fingerprint_tensors
from sparring.models.adopt import adopt, other_base
from sparring.models.base import Base, dtype_warning
from sparring.models.flops import Flops
from sparring.models.memory import Budget, choose_budget
from sparring.models.players import Player
from sparring.models.scoring import computed_tokens
from sparring.run import CHECKPOINTS, Event, Phase
from sparring.schedule import plan_steps
from sparring.session import Session
from sparring.tasks import PairTask, SFTTask, pair_rows
from sparring.trainer import fit
from sparring.watching import watch_for

# ---------------------------------------------------------------- supervised fine-tuning


def fine_tune(session: Session, folder: Path, data: Phase) -> Event:
    """theta_0: a fresh adapter trained on the real answers. With sft.epochs 0, the base itself; with `start`, that."""
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
    prompts, real = rows.lengths("prompt_ids"), rows.lengths("real_ids")
    longest = rows[int(np.argmax(np.add(prompts, real)))]
    budget = budget_of(session, folder, [(longest.prompt_ids, longest.real_ids)])
    task = SFTTask(base, rows, budget.tokens)
    steps = plan_steps(len(rows), config.batch_size, config.epochs, session.seed("sft order"))
    fit(
        session.run, folder, session.ring, task, steps,
        lr=config.lr, warmup=config.warmup, schedule=config.schedule, optimiser=optimiser,
        seed=session.seed("sft"), track=list(session.config.track), watch=lambda step, means: None,
        checkpointing=budget.checkpointing,
    )  # fmt: skip
    if session.crew.writes:
        session.ring.save(folder, start, session.run.folder, "sft")
    items = [item for step in steps for item in step]
    lengths = [prompts[i] + real[i] - 1 for i in items]
    flops = Flops.of(model).training(lengths, sum(real[i] for i in items), checkpointing=budget.checkpointing)
    tokens = sum(lengths) + base.virtual * len(lengths)
    made = {"stopped": None, "steps": len(steps), "tokens": tokens, "flops": flops}
    return {**made, "virtual": tokens - sum(lengths), "trainable": session.ring.size}


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
    _check_scored(session, pairs)
    start = fingerprint_tensors(session.ring.trainable())
    rows = Rows([pairs.folder / "pairs.arrow"], Pair)
    sizes = _sizes(session.ring.base, rows)
    budget = budget_of(session, folder, pair_rows(rows[int(np.argmax(sizes))]))
    task = PairTask(session.ring.base, rows, config.selfplay, iteration, budget.tokens, *_known(pairs))
    flops, (lengths, scored) = Flops.of(model), _trained_lengths(rows, range(len(rows)))
    whole = flops.training(lengths, scored, sum(sizes), budget.checkpointing)
    once = Cost(len(rows) / config.selfplay.batch_size, sum(sizes), whole)
    epochs = epochs_within(session, folder, iteration, once)
    steps = plan_steps(len(rows), config.selfplay.batch_size, epochs, session.seed("order", iteration))
    stopped = fit(
        session.run, folder, session.ring, task, steps,
        lr=learning_rate(config.selfplay, iteration), warmup=config.selfplay.warmup,
        schedule=config.selfplay.schedule, optimiser=config.optimiser, seed=session.seed("learn", iteration),
        track=list(config.track), watch=watch_for(session, folder, data, scores, valued, len(steps)),
        checkpointing=budget.checkpointing,
    )  # fmt: skip
    if fingerprint_tensors(session.ring.trainable()) == start:
        raise LawBroken(
            f"law 11: after iteration {iteration} the player is still its opponent, bit for bit; "
            "it did not learn: is its learning rate far too small?"
        )
    if session.crew.writes:
        session.ring.save(folder, player, session.run.folder, f"{iteration}/player")
    done = max((event["step"] for event in session.run.events() if event["event"] == "step"), default=0)
    items = [item for step in steps[:done] for item in step]
    lengths, scored = _trained_lengths(rows, items)
    tokens = sum(sizes[item] for item in items)
    return {
        "stopped": stopped,
        "steps": done,
        "tokens": tokens,
        "flops": flops.training(lengths, scored, tokens, budget.checkpointing),
        "virtual": _virtual(session.ring.base, rows, items),
        "trainable": session.ring.size,
    }


def go_on(
    session: Session, folder: Path, opponent: Phase, pairs: Phase, data: Phase, scores: Phase,
    valued: Phase | None = None, *, iteration: int,
) -> Event:  # fmt: skip
    """A control: a copy of the player before, trained on the real answers alone. Fine-tuning goes on."""
    config, rows = session.config.selfplay, session.prompts(data, "train")
    player = session.player(opponent)
    model = session.ring.challenge(player, session.seed("adapter", iteration))
    prompts, real = rows.lengths("prompt_ids"), rows.lengths("real_ids")
    lengths = [a + b - 1 for a, b in zip(prompts, real, strict=True)]
    longest = rows[int(np.argmax(lengths))]
    budget = budget_of(session, folder, [(longest.prompt_ids, longest.real_ids)])
    task, flops = SFTTask(session.ring.base, rows, budget.tokens), Flops.of(model)
    whole = flops.training(lengths, sum(real), checkpointing=budget.checkpointing)
    once = Cost(len(rows) / config.batch_size, sum(lengths) + flops.virtual * len(lengths), whole)
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
    done = max((event["step"] for event in session.run.events() if event["event"] == "step"), default=0)
    items = [item for step in steps[:done] for item in step]
    spent = flops.training([lengths[i] for i in items], sum(real[i] for i in items), checkpointing=budget.checkpointing)
    tokens = sum(lengths[i] + flops.virtual for i in items)
    made = {"stopped": stopped, "steps": done, "tokens": tokens, "flops": spent}
    return {**made, "virtual": flops.virtual * len(items), "trainable": session.ring.size}


def _known(pairs: Phase) -> tuple[float, float]:
    """(rounding noise of the opponent's log-probs, share of pairs that are thought to be the wrong way round)."""
    return pairs.facts["noise"], pairs.facts.get("flipped", 0.0)


def _check_scored(session: Session, pairs: Phase) -> None:
    """Law 11: the weights that scored the pairs are those that the player starts from."""
    if pairs.facts["seated"] != session.ring.seated:
        raise LawBroken(
            f"law 11: the pairs were scored by {pairs.facts['seated']}, but the player starts from "
            f"{session.ring.seated}; remove {pairs.folder} to score again"
        )


def _sizes(base: Base, rows: Rows[Pair]) -> list[int]:
    """Tokens that each pair takes in the base's layout: its prompt once, or once per answer."""
    prompts, real = rows.lengths("prompt_ids"), rows.lengths("real_ids")
    found = []
    for prompt, answer, others in zip(prompts, real, rows.inner_lengths("synthetic_ids"), strict=True):
        asked = prompt + base.virtual
        once = asked if base.layout.packed else asked * (1 + len(others))
        found.append(once + answer - 1 + sum(others) - len(others))
    return found


def _virtual(base: Base, rows: Rows[Pair], items: Sequence[int]) -> int:
    """Virtual tokens among those that were computed: once for each prompt, or for each answer."""
    others = rows.inner_lengths("synthetic_ids") if base.virtual else []
    return sum(base.virtual * (1 if base.layout.packed else 1 + len(others[item])) for item in items if base.virtual)


def _trained_lengths(rows: Rows[Pair], items: Sequence[int]) -> tuple[list[int], int]:
    """(length of every row that was trained on, answer tokens in them)."""
    prompts, real = rows.lengths("prompt_ids"), rows.lengths("real_ids")
    synthetic = rows.inner_lengths("synthetic_ids")
    lengths = [prompts[i] + n - 1 for i in items for n in (real[i], *synthetic[i])]
    return lengths, sum(real[i] + sum(synthetic[i]) for i in items)


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
