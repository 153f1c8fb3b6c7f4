"""log p_theta_0 of both answers of preference pairs, once: what the player is held against."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparring.data.pairs import Pair, Preference, Rows, write_stream
from sparring.models.flops import Flops
from sparring.models.scoring import score
from sparring.opponent import BATCH, REPEATED, count_cost, noise_of
from sparring.preparing import preferences
from sparring.run import Event, Phase
from sparring.session import Session


def score_reference(session: Session, folder: Path, data: Phase, start: Phase) -> Event:
    """log p of both answers of the training pairs under θ_0: pairs.arrow. Held-out pairs are scored to be judged."""
    player = session.player(start)
    model = session.ring.seat(player)
    rows = preferences(data, "train")
    counts = {"pairs": len(rows), "tokens": 0, "flops": 0}
    batches = _scored(session, model, rows, counts)
    if session.crew.writes:
        write_stream(folder / "pairs.arrow", batches, Pair)
    else:
        deque(batches, maxlen=0)  # takes its part
    facts = {"noise": noise_of(session, model, answers_of(rows[:REPEATED])), "opponent": player.fingerprint}
    assert session.config.dpo is not None
    return {**counts, **facts, "seated": session.ring.seated, "flipped": session.config.dpo.label_smoothing}


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
