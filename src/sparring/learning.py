"""The phases that make players: fine_tune (theta_0), score_pairs, learn (theta_t+1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sparring.config import at, learning_rate
from sparring.data.pairs import Pair, Played, Prompt, Rows, write_stream
from sparring.errors import DataError, LawBroken
from sparring.evaluation.nll import mean_nll
from sparring.generation.play import played_rows
from sparring.models.flops import Flops
from sparring.models.players import Player, fingerprint_tensors
from sparring.models.scoring import score
from sparring.run import Event, Phase
from sparring.session import Session
from sparring.tasks import PairTask, SFTTask, pair_rows
from sparring.trainer import fit, plan_steps

# ---------------------------------------------------------------- supervised fine-tuning


def fine_tune(session: Session, folder: Path, data: Phase) -> Event:
    """theta_0: a fresh adapter trained on the real answers. With sft.epochs 0, the base itself."""
    config, rows = session.config.sft, session.prompts(data, "train")
    hold = session.config.selfplay.hold
    start = Player.untrained(session.ring.base, hold)
    if config.epochs == 0:
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
    session.ring.save(folder, start, session.run.folder, "sft")
    trained = [
        (len(rows[i].prompt_ids) + len(rows[i].real_ids), len(rows[i].real_ids))
        for step in steps
        for i in step
    ]
    flops = Flops.of(model).training([length for length, _ in trained], sum(scored for _, scored in trained))
    return {"stopped": None, "tokens": sum(length for length, _ in trained), "flops": flops}


# ---------------------------------------------------------------- scoring


def score_pairs(
    session: Session, folder: Path, opponent: Phase, played: Phase, before: Phase | None, *, iteration: int
) -> Event:
    """log p_theta_t of every real and synthetic answer, under the current opponent, once.

    before  the previous iteration's play: a share `selfplay.previous` of it is trained on too, with its
            log-probs under the opponent of now. Pairs whose answers are identical teach nothing (law 2):
            they are dropped and counted.
    """
    player = session.player(opponent)
    if played.facts["opponent"] != player.fingerprint:
        raise LawBroken(
            f"law 11: these answers were played by {played.facts['opponent']}, but the opponent is "
            f"{player.fingerprint}; remove {played.folder} to play again"
        )
    model = session.ring.seat(player)
    share = at(session.config.selfplay.previous, iteration)
    sources = [(played_rows(played.folder), iteration, 1.0)]
    if before is not None and share > 0:
        sources.append((played_rows(before.folder), iteration - 1, share))
    counts = {"identical": 0, "pairs": 0, "previous_pairs": 0, "tokens": 0, "flops": 0}
    flops = Flops.of(model)
    total = sum(round(len(rows) * part) for rows, _, part in sources)

    def scored() -> Iterator[list[Pair]]:
        done = 0
        for rows, played_at, part in sources:
            wanted = _share(len(rows), part, session.seed("previous", iteration))
            for start in range(0, len(wanted), 256):
                chosen: list[Played] = [rows[i] for i in wanted[start : start + 256]]
                kept = [row for row in chosen if any(ids != row.real_ids for ids in row.synthetic_ids)]
                counts["identical"] += len(chosen) - len(kept)
                counts["pairs" if played_at == iteration else "previous_pairs"] += len(kept)
                yield _score(session, model, kept, played_at, counts, flops)
                done += len(chosen)
                session.run.tell({"event": "progress", "done": done, "total": total})

    write_stream(folder / "pairs.arrow", scored(), Pair)
    if counts["pairs"] == 0:
        raise DataError(
            "the opponent gave exactly the real answer to every prompt, so there is nothing left to tell apart; "
            "fewer iterations will do"
        )
    return {**counts, "opponent": player.fingerprint, "seated": session.ring.seated}


def _score(
    session: Session, model: Any, kept: list[Played], played_at: int, counts: dict[str, int], flops: Flops
) -> list[Pair]:
    rows = [(row.prompt_ids, ids) for row in kept for ids in (row.real_ids, *row.synthetic_ids)]
    values = iter(score(model, session.ring.base, rows, session.config.optimiser.micro_batch_tokens))
    counts["tokens"] += sum(len(prompt) + len(answer) for prompt, answer in rows)
    lengths = [len(prompt) + len(answer) for prompt, answer in rows]
    counts["flops"] += flops.forward(lengths, sum(len(answer) for _, answer in rows))
    return [
        Pair(
            row.key, row.prompt_ids, row.real_ids, row.synthetic_ids,
            next(values), [next(values) for _ in row.synthetic_ids], played_at,
        )
        for row in kept
    ]  # fmt: skip


def _share(count: int, share: float, seed: int) -> list[int]:
    """A share of `count` row numbers, in order, chosen by seed."""
    if share == 1:
        return list(range(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[: round(count * share)])


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
    task = PairTask(session.ring.base, rows, config.selfplay, iteration, config.optimiser.micro_batch_tokens)
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
            "it did not learn: is selfplay.lr 0?"
        )
    session.ring.save(folder, player, session.run.folder, f"{iteration}/player")
    done = max((event["step"] for event in session.run.events() if event["event"] == "step"), default=0)
    trained = [row for step in steps[:done] for i in step for row in pair_rows(rows[i])]
    lengths = [len(prompt) + len(answer) for prompt, answer in trained]
    flops = Flops.of(model).training(lengths, sum(len(answer) for _, answer in trained))
    return {"stopped": stopped, "tokens": sum(lengths), "flops": flops}


def _watch(
    session: Session, data: Phase, scores: Phase, steps: int
) -> Callable[[int, dict[str, float]], str | None]:
    """Ends an iteration that goes wrong: held-out NLL risen, or the real answers' log-prob fallen."""
    config = session.config.selfplay
    every = max(1, math.ceil(steps / config.checks_per_iteration)) if config.checks_per_iteration else 0
    begun: float = scores.facts["nll"]
    held_out: Sequence[Prompt] = session.prompts(data, "eval")[:]

    def watch(step: int, means: dict[str, float]) -> str | None:
        drop = -means["real_shift_per_token"]
        if config.stop_real_drop and drop > config.stop_real_drop:
            return (
                f"the real answers' log-prob per token fell by {drop:.3f} (limit {config.stop_real_drop:g})"
            )
        if every and step % every == 0 and step < steps:
            model = session.ring.model.eval()
            nll = mean_nll(model, session.ring.base, held_out, session.config.optimiser.micro_batch_tokens)
            session.run.log({"event": "check", "step": step, "heldout_nll": nll})
            if config.stop_nll_rise and nll - begun > config.stop_nll_rise:
                return f"held-out NLL per token rose by {nll - begun:.3f} (limit {config.stop_nll_rise:g})"
        return None

    return watch
