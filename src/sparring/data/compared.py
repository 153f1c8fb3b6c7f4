"""From preference pairs to training and held-out rows: a prompt is never on both sides, and every pair fits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparring.config import DataConfig
from sparring.data.messages import Renderer
from sparring.data.pairs import Compared
from sparring.data.preferences import Preference, read_preferences
from sparring.errors import DataError
from sparring.files import digest


@dataclass(frozen=True, slots=True)
class Sides:
    """The pairs of a run, as token ids.

    counts       what became of the rows
    description  one line for people
    fingerprint  over the content of both sides; holds no paths
    messages     what the reader has to say
    """

    train: list[Compared]
    eval: list[Compared]
    counts: dict[str, int]
    description: str
    fingerprint: str
    messages: list[str]


def read_sides(config: DataConfig, renderer: Renderer, seed: int, context: int) -> Sides:
    """Read the pairs that `data` names, and hold `eval`, or `eval_size` of the prompts, out.

    context  the most tokens that a prompt and an answer may have. DataError where a side is left empty.
    """
    found = read_preferences(config, renderer)
    counts, messages = Counter(found.counts), list(found.messages)
    if config.eval:
        held = read_preferences(config.model_copy(update={"train": config.eval}), renderer)
        asked = {tuple(row.prompt_ids) for row in held.rows}
        train, held_rows = [row for row in found.rows if tuple(row.prompt_ids) not in asked], held.rows
        counts["leaked"] = len(found.rows) - len(train)
        messages += held.messages
    else:
        chosen = _held_out(found.rows, config, seed)
        train = [row for row in found.rows if tuple(row.prompt_ids) not in chosen]
        held_rows = [row for row in found.rows if tuple(row.prompt_ids) in chosen]
    length = min(config.max_length or context, context)
    sides = {}
    for side, rows in (("train", train), ("eval", held_rows)):
        kept = [one for row in rows if (one := _fitted(row, length, config.too_long)) is not None]
        counts[f"{side}_too_long"] = len(rows) - len(kept)
        if not kept:
            why = f"all {len(rows)} are longer than {length} tokens" if rows else "every prompt is on the other side"
            raise DataError(f"no {side} pair is left: {why}; give more data, or another data.eval_size")
        sides[side] = keyed_pairs(kept)
    counts.update({"train": len(sides["train"]), "eval": len(sides["eval"])})
    description = f"{config.train.rpartition('/')[2]}: {counts['train']} pairs to train on, {counts['eval']} held out"
    print_of = digest([[_content(row) for row in rows] for rows in sides.values()])
    return Sides(sides["train"], sides["eval"], dict(counts), description, print_of, messages)


def _held_out(rows: Sequence[Preference], config: DataConfig, seed: int) -> set[tuple[int, ...]]:
    """The prompts that are held out: those of lowest hash, so that the order of rows does not matter."""
    prompts = sorted({tuple(row.prompt_ids) for row in rows}, key=lambda ids: digest([seed, ids]))
    size = config.eval_size
    count = min(config.eval_limit, max(1, round(size * len(prompts)))) if size < 1 else int(size)
    if count >= len(prompts):
        raise DataError(
            f"data.eval_size {size:g} holds {count} of the {len(prompts)} distinct prompts out, which leaves none to "
            "train on; lower it, or give data.eval"
        )
    return set(prompts[:count])


def _fitted(row: Preference, length: int, too_long: str) -> Preference | None:
    """The pair if it fits, with its answers cut to fit if that is asked for; None if it is to be dropped."""
    room = length - len(row.prompt_ids)
    longest = max(len(row.chosen_ids), len(row.rejected_ids))
    if longest <= room:
        return row
    if too_long == "error":
        raise DataError(
            f"{row.source}: {len(row.prompt_ids) + longest} tokens, but at most {length} fit; shorten it, or set "
            "data.too_long to drop or truncate"
        )
    chosen, rejected = row.chosen_ids[: max(room, 0)], row.rejected_ids[: max(room, 0)]
    if too_long == "drop" or room <= 0 or chosen == rejected:
        return None
    return Preference(row.prompt_ids, chosen, rejected, row.source, row.weight, row.votes)


def keyed_pairs(rows: Sequence[Preference]) -> list[Compared]:
    """Rows with a key: a hash of their content and, for exact copies, a count."""
    seen: Counter[bytes] = Counter()
    made = []
    for row in rows:
        ids = [len(row.prompt_ids), *row.prompt_ids, len(row.chosen_ids), *row.chosen_ids, *row.rejected_ids]
        content = np.asarray(ids, dtype=np.int64).tobytes()
        raw = hashlib.blake2b(content + seen[content].to_bytes(8, "little"), digest_size=8).digest()
        seen[content] += 1
        key = int.from_bytes(raw, "little")
        made.append(
            Compared(key, row.prompt_ids, row.chosen_ids, row.rejected_ids, row.weight, list(row.votes), row.source)
        )
    return made


def _content(row: Compared) -> list[object]:
    return [row.prompt_ids, row.chosen_ids, row.rejected_ids, row.weight, row.votes]
