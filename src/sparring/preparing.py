"""The data phase: examples as token ids, written once."""

from __future__ import annotations

from pathlib import Path

from sparring.data.pairs import Prompt, write_rows
from sparring.data.prepare import prepare
from sparring.models.base import context_of, read_config
from sparring.run import Event
from sparring.session import Session

SIDES = {"train": "training", "eval": "held-out", "test": "test"}
WARNINGS = {
    "too_long": "were dropped: longer than data.max_length or the model's context",
    "truncated": "had their answers cut, and have no end token",
    "refused_by_template": "were dropped: the chat template refuses them",
    "special_tokens_in_text": "hold special tokens in their text, which act as such; an end token ends the answer",
}


def prepare_data(session: Session, folder: Path) -> Event:
    """Render, fit to the context, and write train.arrow, eval.arrow and perhaps test.arrow. One process does."""
    if not session.crew.writes:
        return {}
    context = context_of(read_config(session.base_folder, session.config.model))
    sides, counts = prepare(
        session.loaded, session.renderer, session.config.data, context, session.config.method.virtual
    )
    for side, prompts in sides.items():
        write_rows(folder / f"{side}.arrow", prompts, Prompt)
        for name, what in WARNINGS.items():
            if counts.get(f"{side}_{name}"):
                session.run.warn(f"{counts[f'{side}_{name}']} {SIDES[side]} examples {what}")
    return {**counts, "chat": session.loaded.train[0].chat}
