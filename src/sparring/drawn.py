"""Which prompts an iteration of reinforcement learning asks: all, `reinforce.prompts`, or what its budget pays for.

A group of K answers costs far more than one answer: it is played K times, scored under two players, and learnt. With a
budget so many prompts are drawn that all of that, `reinforce.epochs` passes of learning included, takes the iteration's
share, be they fewer than a batch; one at least. In the first iteration the cost is forecast from the real answers'
lengths as if every group taught something; later it is what the iteration before took. What is left after playing and
scoring is for learning. Once the whole budget has not enough left for a prompt, there is no further iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from sparring.allowance import Cost, in_units, left_of, spent, spent_on_play
from sparring.config_reinforce import ReinforceConfig
from sparring.data.pairs import Prompt
from sparring.folder import read_marker
from sparring.generation.play import answer_limit
from sparring.models.flops import Flops
from sparring.run import Phase
from sparring.session import Session


def drawn(session: Session, data: Phase, count: int, iteration: int) -> Sequence[Prompt]:
    """`count` of the training prompts, drawn anew in each iteration, in the data's order; all, if there are no more."""
    prompts = session.prompts(data, "train")
    if count >= len(prompts):
        return prompts
    generator = torch.Generator().manual_seed(session.seed("prompts", iteration))
    return [prompts[i] for i in sorted(torch.randperm(len(prompts), generator=generator)[:count].tolist())]


def how_many(session: Session, config: ReinforceConfig, data: Phase, player: Phase, iteration: int) -> int:
    """How many prompts an iteration asks. It follows from finished phases alone, so a restart asks as many."""
    every, budget = len(session.prompts(data, "train")), session.config.selfplay.budget
    if config.prompts is not None or budget is None:
        return min(config.prompts or every, every)
    if iteration:
        cost = _took(session.run.folder, config, iteration, budget.unit)
    else:
        cost = in_units(session, 0, _expected(session, config, data, player)) / every
    return session.crew.decide(lambda: min(every, max(1, int(left_of(session, iteration) / cost))))


def used_up(session: Session, config: ReinforceConfig, iteration: int) -> bool:
    """Whether an iteration after the first cannot ask a prompt any more; follows from finished phases alone."""
    budget = session.config.selfplay.budget
    if budget is None or not iteration:
        return False
    run = session.run.folder

    def short() -> bool:
        left = budget.amount - spent_on_play(run, iteration)[budget.unit]
        return bool(left <= 0 or (config.prompts is None and left < _took(run, config, iteration, budget.unit)))

    return session.crew.decide(short)


def _expected(session: Session, config: ReinforceConfig, data: Phase, player: Phase) -> Cost:
    """What the groups of all prompts would take in the first iteration, if answers are as long as the real ones."""
    rows, limit, many = session.prompts(data, "train"), answer_limit(session, data), config.samples
    prompts, real = rows.lengths("prompt_ids"), [min(n, limit) for n in rows.lengths("real_ids")]
    both = list(zip(prompts, real, strict=True))
    flops = Flops.of(session.ring.challenge(session.player(player), session.seed("adapter", 0)))
    once = 1 if session.ring.base.layout.packed else many
    packed = sum((p + flops.virtual) * once + many * (n - 1) for p, n in both)
    lengths, scored = [p + n - 1 for p, n in both for _ in range(many)], many * sum(real)
    played = flops.decoding([p for p in prompts for _ in range(many)], [n for n in real for _ in range(many)])
    learnt = config.epochs * flops.training(lengths, scored, packed)
    return Cost(
        steps=config.epochs * len(rows) / config.batch_size,
        tokens=round(many * (sum(prompts) + sum(real) + flops.virtual * len(rows)) + (1 + config.epochs) * packed),
        flops=round(played + flops.forward(lengths, scored, packed) + learnt),
    )


def _took(run: Path, config: ReinforceConfig, iteration: int, unit: str) -> float:
    """What a prompt took in the iteration before, groups that taught nothing included."""
    before = run / str(iteration - 1)
    played, rewards, scored, player = (
        float(spent(before / name)[unit]) for name in ("played", "rewards", "scored", "player")
    )
    seats = 2 if iteration == 1 else 1  # θ_0's own answers were scored once, by itself
    passes = float(read_marker(before / "player")["facts"].get("passes", config.epochs))
    prompts = float(read_marker(before / "played")["facts"]["answers"]) / config.samples
    return (played + rewards + seats * scored + config.epochs * player / passes) / prompts
