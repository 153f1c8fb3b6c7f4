"""Control arms: Algorithm 1 with one thing changed on purpose, to see what self-play itself is good for.

    opponent       nothing is changed: SPIN
    start          a stale opponent: θ_0 answers in every iteration; margins are still measured from θ_t
    other_prompt   nobody plays: a prompt's real answer is told from other prompts' real answers
    shuffled       a coin decides for each prompt which of the two answers is called real
    none           nobody plays and nothing is told apart: fine-tuning on the real answers goes on

Where a control breaks law 5 or 11 on purpose, that check is left out, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparring.data.pairs import Pair, Played, Prompt, Rows, write_rows, write_stream
from sparring.generation.play import answer_limit, play, played_rows
from sparring.learning import go_on, learn
from sparring.opponent import check_answers, score_pairs, write_pairs
from sparring.run import Event, Phase
from sparring.session import Session

Step = Callable[..., Event]


@dataclass(frozen=True, slots=True)
class Rules:
    """The three steps of an iteration, each the `make` of a phase."""

    play: Step
    score_pairs: Step
    learn: Step


# ---------------------------------------------------------------- a stale opponent


def play_start(session: Session, folder: Path, data: Phase, opponent: Phase, *, iteration: int) -> Event:
    """θ_0's answers, whoever the opponent is."""
    start = replace(opponent, name="sft", folder=session.run.folder / "sft")
    return play(session, folder, data, start, iteration=iteration)


def score_given(
    session: Session, folder: Path, data: Phase, opponent: Phase, played: Phase, before: Phase | None, *, iteration: int
) -> Event:
    """Log-probs under θ_t of answers that it did not give: laws 5 and 11 cannot hold, and are not checked."""
    fresh = played_rows(played.folder)
    check_answers(session, data, played, fresh)
    session.run.warn("a control arm: the answers are not the opponent's, so laws 5 and 11 are not checked")
    player = session.player(opponent)
    session.ring.seat(player)
    facts = write_pairs(session, folder, fresh, before, iteration, None)
    return {**facts, "opponent": player.fingerprint, "seated": session.ring.seated}


# ---------------------------------------------------------------- other prompts' answers


def borrow(session: Session, folder: Path, data: Phase, opponent: Phase, *, iteration: int) -> Event:
    """Real answers of other prompts, K for each, cut where they would not fit."""
    if not session.crew.writes:
        return {}
    prompts = session.prompts(data, "train")
    samples, size = session.config.selfplay.samples, session.config.generation.shard_size
    limit, context = answer_limit(session, data), session.ring.context
    generator = torch.Generator().manual_seed(session.seed("borrow", iteration))
    order = torch.randperm(len(prompts), generator=generator).tolist()
    place = {item: number for number, item in enumerate(order)}
    for number, first in enumerate(range(0, len(prompts), size)):
        rows = []
        for item, row in enumerate(prompts[first : first + size], start=first):
            others = [prompts[order[(place[item] + k) % len(order)]] for k in range(1, samples + 1)]
            rows.append(_lent(row, others, min(limit, context - len(row.prompt_ids))))
        write_rows(folder / f"shard-{number:05d}.arrow", rows, Played)
    return {"opponent": "other prompts", "answers": len(prompts) * samples, "tokens": 0, "flops": 0}


def _lent(row: Prompt, others: list[Prompt], limit: int) -> Played:
    ids = [other.real_ids[:limit] for other in others]
    whole = [other.real_ended and len(other.real_ids) <= limit for other in others]
    finish = ["end" if ended else "length" for ended in whole]
    return Played(row.key, row.prompt_ids, row.real_ids, ids, finish, [0.0] * len(ids))


# ---------------------------------------------------------------- shuffled labels


def score_shuffled(
    session: Session, folder: Path, data: Phase, opponent: Phase, played: Phase, before: Phase | None, *, iteration: int
) -> Event:
    """SPIN's pairs, in half of which the first synthetic answer is called real, and the real one synthetic."""
    facts = score_pairs(session, folder, data, opponent, played, before, iteration=iteration)
    if session.crew.writes:
        session.run.warn("a control arm: in half of the pairs the labels are changed over")
        coins = torch.Generator().manual_seed(session.seed("coins", iteration))
        write_stream(folder / "pairs.arrow", _tossed(Rows([folder / "pairs.arrow"], Pair), coins), Pair)
    return facts


def _tossed(rows: Rows[Pair], coins: torch.Generator) -> Iterator[list[Pair]]:
    for batch in rows.batches(256):
        heads = torch.randint(2, (len(batch),), generator=coins).tolist()
        yield [_swapped(pair) if head else pair for pair, head in zip(batch, heads, strict=True)]


def _swapped(pair: Pair) -> Pair:
    return replace(
        pair,
        real_ids=pair.synthetic_ids[0],
        synthetic_ids=[pair.real_ids, *pair.synthetic_ids[1:]],
        opponent_real=pair.opponent_synthetic[0],
        opponent_synthetic=[pair.opponent_real, *pair.opponent_synthetic[1:]],
    )


# ---------------------------------------------------------------- nobody plays


def sit_out(*_: Any, **__: Any) -> Event:
    """Nothing to do; the loop goes on (`converged` asks for the pairs)."""
    return {"tokens": 0, "flops": 0, "pairs": 1, "previous_pairs": 0}


RULES: dict[str, Rules] = {
    "opponent": Rules(play, score_pairs, learn),
    "start": Rules(play_start, score_given, learn),
    "other_prompt": Rules(borrow, score_given, learn),
    "shuffled": Rules(play, score_shuffled, learn),
    "none": Rules(sit_out, sit_out, go_on),
}
