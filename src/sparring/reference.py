"""Preference pairs as data, and log p_theta_0 of both answers, once: what the player is held against."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparring.data.messages import Example
from sparring.data.pairs import Pair, Preference, Prompt, Rows, keyed, write_rows, write_stream
from sparring.data.preferences import Preferences, prepare_preferences
from sparring.data.selfplayed import chats, is_run
from sparring.errors import DataError
from sparring.files import write_atomic
from sparring.models.base import context_of
from sparring.models.flops import Flops
from sparring.models.scoring import score
from sparring.opponent import BATCH, REPEATED, count_cost, noise_of
from sparring.run import Event, Phase
from sparring.session import Session

BAD_ROWS = "bad_rows.txt"
NAMED = 3  # bad rows that a warning names; the file holds all
SIDES = {"train": "training", "eval": "held-out", "test": "test"}
WARNINGS = {
    "too_long": "were dropped: longer than data.max_length or the model's context",
    "truncated": "had an answer cut, which has no end token",
    "identical": "were dropped: both answers are the same tokens",
}


def prepare_pairs(session: Session, folder: Path) -> Event:
    """Write the pairs of each side, train_pairs.arrow …, and its chosen answers, train.arrow … One process does.

    The chosen answers are what θ_0 is fine-tuned on and players are judged by, each once; ties have none.
    """
    if not session.crew.writes:
        return {}
    config = session.config
    context, virtual = context_of(session.settings), config.method.virtual
    sides, counts = prepare_preferences(session.loaded, session.renderer, config.data, context, virtual)
    for side, found in sides.items():
        write_rows(folder / f"{side}_pairs.arrow", found.rows, Preference)
        chosen = _chosen(found, session, side)
        write_rows(folder / f"{side}.arrow", chosen, Prompt)
        counts[f"{side}_examples"] = len(chosen)
        for name, what in WARNINGS.items():
            if counts.get(f"{side}_{name}"):
                session.run.warn(f"{counts[f'{side}_{name}']} {SIDES[side]} pairs {what}")
    bad = sides["train"].messages
    if bad:
        write_atomic(folder / BAD_ROWS, "".join(f"{line}\n" for line in bad))
        more = f"; all are in data/{BAD_ROWS}" if len(bad) > NAMED else ""
        session.run.warn(f"{len(bad)} bad rows were left out: {'; '.join(bad[:NAMED])}{more}")
    chat = chats(config.data) if is_run(config.data.train) else session.loaded.train[0].chat
    return {**counts, "chat": chat}


def _chosen(found: Preferences, session: Session, side: str) -> list[Prompt]:
    """Each chosen answer once, whatever number of others it beat."""
    rows = {(tuple(row.prompt_ids), tuple(row.chosen_ids)): row for row in reversed(found.rows) if row.weight == 1}
    if not rows:
        raise DataError(f"every {SIDES[side]} pair is a tie, so there is no chosen answer to judge by; give more data")
    ends = set(session.renderer.end_ids)
    return keyed(
        Example(row.prompt_ids, row.chosen_ids, row.chosen_ids[-1] in ends, row.source)
        for row in reversed(rows.values())
    )


def score_reference(session: Session, folder: Path, data: Phase, start: Phase) -> Event:
    """log p of both answers under θ_0: pairs.arrow to learn from, held_out.arrow to judge by."""
    player = session.player(start)
    model = session.ring.seat(player)
    counts = {"pairs": 0, "tokens": 0, "flops": 0}
    for side, name in (("eval", "held_out"), ("train", "pairs")):
        rows = preferences(data, side)
        batches = _scored(session, model, rows, counts)
        if session.crew.writes:
            write_stream(folder / f"{name}.arrow", batches, Pair)
        else:
            deque(batches, maxlen=0)  # takes its part
    counts["pairs"] = len(rows)
    facts = {"noise": noise_of(session, model, answers_of(rows[:REPEATED])), "opponent": player.fingerprint}
    assert session.config.dpo is not None
    return {**counts, **facts, "seated": session.ring.seated, "flipped": session.config.dpo.label_smoothing}


def preferences(data: Phase, side: str) -> Rows[Preference]:
    """The pairs of a side."""
    return Rows([data.folder / f"{side}_pairs.arrow"], Preference)


def answers_of(rows: Sequence[Preference]) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of both answers of each pair, the chosen one first."""
    return [(row.prompt_ids, ids) for row in rows for ids in (row.chosen_ids, row.rejected_ids)]


def _scored(session: Session, model: Any, rows: Rows[Preference], counts: dict[str, int]) -> Iterator[list[Pair]]:
    """Batches of scored pairs in order, shared out among the processes; adds to `counts` as it goes."""
    flops, crew = Flops.of(model), session.crew
    starts = range(0, len(rows), BATCH)
    for turn in range(0, len(starts), crew.size):
        mine: list[list[Pair]] = []
        for number, start in enumerate(starts[turn : turn + crew.size]):
            chosen: list[Preference] = rows[start : start + BATCH]
            count_cost(session, answers_of(chosen), counts, flops)
            if number == crew.rank:
                mine.append(_score(session, model, chosen, start))
        yield from crew.gather(mine)
        session.run.tell({"event": "progress", "done": min(len(rows), (turn + 1) * BATCH), "total": len(rows)})


def _score(session: Session, model: Any, rows: Sequence[Preference], first: int) -> list[Pair]:
    """key: the pair's number."""
    values = score(model, session.ring.base, answers_of(rows), session.config.optimiser.micro_batch_tokens)
    return [
        Pair(
            first + number, row.prompt_ids, row.chosen_ids, [row.rejected_ids], values[2 * number],
            [values[2 * number + 1]], 0, row.weight,
        )
        for number, row in enumerate(rows)
    ]  # fmt: skip
