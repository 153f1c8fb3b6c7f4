"""Preference pairs from JSON lines: {"prompt", "chosen", "rejected"}, perhaps "votes"; or the laboratory's plant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparring.config import DataConfig
from sparring.data.formats import FORMATS, BadRow
from sparring.data.messages import Renderer
from sparring.data.sources import LABORATORY, find_rows
from sparring.errors import DataError
from sparring.laboratory import planted


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt as token ids, of which the first was preferred.

    weight  how much it counts
    votes   of each annotator, if there were several: 1 for the chosen answer, 0 for the other, ½ for a tie
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    source: str
    weight: float = 1.0
    votes: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Preferences:
    """All pairs of a source, what became of its rows, and what is to be said of them."""

    rows: list[Preference]
    counts: dict[str, int]
    messages: list[str]


def read_preferences(config: DataConfig, renderer: Renderer) -> Preferences:
    """Read and render the pairs that `config.train` names. DataError for what cannot be used, with its place."""
    if config.train == LABORATORY:
        raws = [(f"laboratory[row {number}]", row) for number, row in enumerate(planted.rows())]
    else:
        found = find_rows(config.train, config.subset, ("", "train"), config.separator, 0)
        raws = list(found.read(0, found.count()))
    rows: list[Preference] = []
    counts: Counter[str] = Counter(rows=len(raws))
    for source, raw in raws:
        try:
            rows.append(_preference(source, raw, config, renderer))
        except BadRow as fault:
            if config.bad_rows == "error":
                raise
            counts[f"bad: {fault.reason}"] += 1
    if not rows:
        raise DataError(f"{config.train} holds no usable pair; see one with data.bad_rows: error")
    return Preferences(rows, dict(counts), [])


def _preference(source: str, raw: Any, config: DataConfig, renderer: Renderer) -> Preference:
    if isinstance(raw, BadRow):
        raise raw
    for column in ("prompt", "chosen", "rejected"):
        if not isinstance(raw, dict) or column not in raw:
            raise BadRow(source, "missing column", f'no "{column}"')
    sides = [_rendered(source, raw, side, config, renderer) for side in ("chosen", "rejected")]
    (prompt, chosen), (again, rejected) = sides
    if prompt != again:
        raise BadRow(source, "two prompts", "the prompt's tokens differ between chosen and rejected")
    if chosen == rejected:
        raise BadRow(source, "equal answers", "chosen and rejected are the same, which teaches nothing")
    votes = tuple(float(vote) for vote in raw.get("votes") or ())
    return Preference(prompt, chosen, rejected, source, float(raw.get("weight", 1.0)), votes)


def _rendered(
    source: str, raw: Mapping[str, Any], side: str, config: DataConfig, renderer: Renderer
) -> tuple[list[int], list[int]]:
    row = {"prompt": raw["prompt"], "completion": raw[side]}
    example = renderer.render(FORMATS["prompt_completion"].parse(row, source, config))[0]
    return example.prompt_ids, example.answer_ids
