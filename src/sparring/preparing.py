"""The data phase: examples as token ids, written once."""

from __future__ import annotations

from pathlib import Path

from sparring.data.pairs import Prompt, write_rows
from sparring.data.prepare import prepare
from sparring.models.base import context_of, read_config
from sparring.run import Event
from sparring.session import Session


def prepare_data(session: Session, folder: Path) -> Event:
    """Render, fit to the context, and write train.arrow and eval.arrow."""
    context = context_of(read_config(session.base_folder, session.config.model))
    train, held_out, counts = prepare(session.loaded, session.renderer, session.config.data, context)
    write_rows(folder / "train.arrow", train, Prompt)
    write_rows(folder / "eval.arrow", held_out, Prompt)
    for name in ("train_too_long", "eval_too_long", "train_truncated"):
        if counts.get(name):
            what = "were cut" if name.endswith("truncated") else "were dropped: too long for the context"
            session.run.warn(f"{counts[name]} {name.split('_')[0]} examples {what}")
    return {**counts, "chat": session.loaded.train[0].chat}
