"""Preference pairs from JSON lines: {"prompt", "chosen", "rejected"}, perhaps "votes"; or the laboratory's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparring.config import DataConfig
from sparring.data.formats import FORMATS, BadRow
from sparring.data.load import Loaded
from sparring.data.messages import Renderer
from sparring.data.pairs import Preference
from sparring.data.sources import LABORATORY, find_rows
from sparring.errors import DataError
from sparring.files import digest


@dataclass(frozen=True, slots=True)
class Preferences:
    """Pairs that can be used.

    counts    what was read, left out and kept, by name
    messages  each row that was left out: its file and line, and why
    """

    rows: list[Preference]
    counts: dict[str, int]
    messages: list[str]


def read_preferences(
    config: DataConfig, renderer: Renderer, context: int | None = None, split: str = "train"
) -> Preferences:
    """Every pair of `data.train`; nothing is held out. DataError for what cannot be used, with its place.

    context  tokens that prompt and answer may have together at most; None: `data.max_length`, or any number
    """
    found = find_rows(config.train, config.subset, (split, "train"), config.separator, 0)
    length = min(config.max_length or 2**31, context or 2**31)
    rows: list[Preference] = []
    counts, messages = Counter(rows=0, too_long=0), list[str]()
    for source, raw in found.read(0, found.count()):
        counts["rows"] += 1
        try:
            row = _preference(source, raw, config, renderer)
        except BadRow as fault:
            if config.bad_rows == "error":
                raise
            counts[f"bad: {fault.reason}"] += 1
            messages.append(str(fault))
            continue
        if len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids)) > length:
            counts["too_long"] += 1
        else:
            rows.append(row)
    if not rows:
        raise DataError(f"none of the {counts['rows']} pairs of {config.train} can be used ({dict(counts)})")
    return Preferences(rows, dict(counts), messages)


def load_preferences(config: DataConfig, seed: int, renderer: Renderer) -> Loaded:
    """What the preferences that `data` names are, and how many."""
    sides = _sides(config, seed, renderer, None)
    content = [[asdict(row) | {"source": ""} for row in part.rows] for part in sides.values()]
    counts = {name: len(part.rows) for name, part in sides.items()}
    name = config.train.rpartition("/")[2]
    description = f"{name}: {counts['train']} pairs to train on, {counts['eval']} held out"
    return Loaded([], [], counts, description, digest([seed, content]), [])


def prepare_preferences(
    loaded: Loaded, renderer: Renderer, config: DataConfig, context: int, virtual: int = 0
) -> tuple[dict[str, Preferences], dict[str, int]]:
    """(pairs by side: train, eval; counts). DataError when one is left empty."""
    sides = _sides(config, 0, renderer, context - virtual)
    counts = {**loaded.counts}
    for side, part in sides.items():
        counts |= {f"{side}_{name}": count for name, count in part.counts.items()}
    return sides, counts


def _sides(config: DataConfig, seed: int, renderer: Renderer, context: int | None) -> dict[str, Preferences]:
    """Held-out pairs are `data.eval`, the laboratory's own, or those of `eval_size` of the prompts, by a hash."""
    found = read_preferences(config, renderer, context)
    if config.eval or config.train == LABORATORY:
        there = config.model_copy(update={"train": config.eval or config.train})
        held = read_preferences(there, renderer, context, "test" if config.train == LABORATORY else "train")
        asked = {tuple(row.prompt_ids) for row in held.rows}
    else:
        prompts = sorted({tuple(row.prompt_ids) for row in found.rows}, key=digest)
        size = config.eval_size
        count = min(config.eval_limit, max(1, round(size * len(prompts)))) if size < 1 else int(size)
        if count >= len(prompts):
            raise DataError(
                f"data.eval_size {size:g} holds {count} of the {len(prompts)} distinct prompts out, which leaves none "
                "to train on; lower it, or give data.eval"
            )
        asked = set(prompts[:count])
        held = Preferences([row for row in found.rows if tuple(row.prompt_ids) in asked], {}, [])
    train = [row for row in found.rows if tuple(row.prompt_ids) not in asked]
    if not train:
        raise DataError(f"every prompt of {config.train} is also held out; give other data.eval")
    return {"train": Preferences(train, found.counts, found.messages), "eval": held}


def _preference(source: str, raw: Any, config: DataConfig, renderer: Renderer) -> Preference:
    if isinstance(raw, BadRow):
        raise raw
    for column in ("prompt", "chosen", "rejected"):
        if not isinstance(raw, dict) or column not in raw:
            raise BadRow(source, "missing column", f'no "{column}"')
    (prompt, chosen), (again, rejected) = (
        _rendered(source, raw, side, config, renderer) for side in ("chosen", "rejected")
    )
    if prompt != again:
        raise BadRow(source, "two prompts", "the prompt's tokens differ between chosen and rejected")
    if chosen == rejected:
        raise BadRow(source, "equal answers", "chosen and rejected are the same, which teaches nothing")
    votes = [float(vote) for vote in raw.get("votes") or ()]
    return Preference(prompt, chosen, rejected, source, float(raw.get("weight", 1.0)), votes)


def _rendered(
    source: str, raw: Mapping[str, Any], side: str, config: DataConfig, renderer: Renderer
) -> tuple[list[int], list[int]]:
    row = {"prompt": raw["prompt"], "completion": raw[side]}
    example = renderer.render(FORMATS["prompt_completion"].parse(row, source, config))[0]
    return example.prompt_ids, example.answer_ids
