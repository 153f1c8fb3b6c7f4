"""The data phase: examples, or preference pairs, as token ids, written once."""

from __future__ import annotations

from pathlib import Path

from sparring.data.pairs import Preference, Prompt, Rows, write_rows
from sparring.data.preferences import SIDES, Preferences, chosen_of, prepare_preferences
from sparring.data.prepare import prepare
from sparring.data.selfplayed import chats, is_run
from sparring.files import write_atomic
from sparring.models.base import context_of, read_config
from sparring.run import Event, Phase
from sparring.session import Session

WARNINGS = {
    "too_long": "were dropped: longer than data.max_length or the model's context",
    "truncated": "had their answers cut, and have no end token",
    "refused_by_template": "were dropped: the chat template refuses them",
    "special_tokens_in_text": "hold special tokens in their text, which act as such; an end token ends the answer",
}
PAIR_WARNINGS = {
    "too_long": WARNINGS["too_long"],
    "truncated": "had an answer cut, which has no end token",
    "identical": "were dropped: both answers are the same tokens",
}
BAD_ROWS = "bad_rows.txt"
NAMED = 3  # bad rows that a warning names; the file holds all


def prepare_data(session: Session, folder: Path) -> Event:
    """Render, fit to the context, and write train.arrow, eval.arrow and perhaps test.arrow. One process does.

    Of preference pairs the chosen answers are real, and the pairs are written too: whatever is done with them, all
    work on the same data.
    """
    if not session.crew.writes:
        return {}
    if session.loaded.compared:
        return prepare_pairs(session, folder)
    virtual = session.config.method.virtual
    sides, counts = prepare(session.loaded, session.renderer, session.config.data, _context(session), virtual)
    for side, prompts in sides.items():
        write_rows(folder / f"{side}.arrow", prompts, Prompt)
        _warn(session, counts, side, "examples", WARNINGS)
    return {**counts, "chat": session.loaded.train[0].chat}


def prepare_pairs(session: Session, folder: Path) -> Event:
    """Write the pairs of each side, train_pairs.arrow …, and its chosen answers, train.arrow … One process does.

    The chosen answers are what θ_0 is fine-tuned on and players are judged by, each once; ties have none.
    """
    if not session.crew.writes:
        return {}
    sides, counts = _write_pairs(session, folder)
    for side, found in sides.items():
        chosen = chosen_of(found.rows, session.renderer.end_ids, side)
        write_rows(folder / f"{side}.arrow", chosen, Prompt)
        counts[f"{side}_examples"] = len(chosen)
    data = session.config.data
    return {**counts, "chat": chats(data) if is_run(data.train) else session.loaded.train[0].chat}


def prepare_compared(session: Session, folder: Path) -> Event:
    """Write the pairs of each side alone. One process does."""
    return _write_pairs(session, folder)[1] if session.crew.writes else {}


def preferences(data: Phase, side: str) -> Rows[Preference]:
    """The pairs of a side."""
    return Rows([data.folder / f"{side}_pairs.arrow"], Preference)


def _write_pairs(session: Session, folder: Path) -> tuple[dict[str, Preferences], dict[str, int]]:
    config = session.config
    sides, counts = prepare_preferences(
        session.loaded, session.renderer, config.data, _context(session), config.method.virtual
    )
    for side, found in sides.items():
        write_rows(folder / f"{side}_pairs.arrow", found.rows, Preference)
        _warn(session, counts, side, "pairs", PAIR_WARNINGS)
    if bad := sides["train"].messages:
        write_atomic(folder / BAD_ROWS, "".join(f"{line}\n" for line in bad))
        more = f"; all are in data/{BAD_ROWS}" if len(bad) > NAMED else ""
        were = "rows were" if len(bad) > 1 else "row was"
        session.run.warn(f"{len(bad)} bad {were} left out: {'; '.join(bad[:NAMED])}{more}")
    return sides, counts


def _warn(session: Session, counts: dict[str, int], side: str, what: str, warnings: dict[str, str]) -> None:
    for name, said in warnings.items():
        if counts.get(f"{side}_{name}"):
            session.run.warn(f"{counts[f'{side}_{name}']} {SIDES[side]} {what} {said}")


def _context(session: Session) -> int:
    return context_of(read_config(session.base_folder, session.config.model))
