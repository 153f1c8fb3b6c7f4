"""Preference pairs as token ids: from files in any format of comparisons.py, or of a self-play run.

Both answers are rendered behind one prompt, by the one Renderer. The pairs of a run are its own token ids, real over
synthetic: nothing is decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sparring.config import DataConfig
from sparring.data.comparisons import PREFERENCES
from sparring.data.formats import FORMATS, fits
from sparring.data.load import Loaded, columns_of, load
from sparring.data.messages import Conversation, Example, Message, Renderer, fit
from sparring.data.pairs import Preference, Prompt, keyed
from sparring.data.prepare import holds_special, room
from sparring.data.selfplayed import is_run, loaded_run, run_pairs
from sparring.data.sources import LABORATORY
from sparring.errors import DataError

SIDES = {"train": "training", "eval": "held-out", "test": "test"}
Sided = tuple[Example, Example, float, list[float]]  # chosen, rejected, weight, votes


@dataclass(frozen=True, slots=True)
class Preferences:
    """Pairs that can be used.

    counts    what was left out and kept, by name
    messages  each row that was left out: its file and line, and why
    """

    rows: list[Preference]
    counts: dict[str, int]
    messages: list[str]


def load_answers(config: DataConfig, seed: int, renderer: Renderer) -> Loaded:
    """Read and divide prompts with real answers; of preference pairs those are the chosen ones."""
    return load_preferences(config, seed, renderer) if compares(config, seed) else load(config, seed)


def compares(config: DataConfig, seed: int) -> bool:
    """Whether `data` names preference pairs: because it says so, or because its rows hold nothing else."""
    if config.answers == "chosen" or is_run(config.train):
        return True
    found = columns_of(config, seed)
    return not fits(found, config, FORMATS) and fits(found, config, PREFERENCES)


def check_pairs(config: DataConfig, seed: int, who: str) -> None:
    """DataError unless `data` can be read as preference pairs. who: what needs them."""
    if is_run(config.train):
        return
    found = columns_of(config, seed)
    if fits(found, config, PREFERENCES):
        return
    ways = "set data.subset=preferences" if config.train == LABORATORY else "give data of pairs (data.train)"
    raise DataError(
        f"{who} learns from pairs of a chosen and a rejected answer, but {config.train} has the columns "
        f"{', '.join(sorted(map(str, found))) or 'none'}; {ways}, or leave it out"
    )


def load_preferences(config: DataConfig, seed: int, renderer: Renderer) -> Loaded:
    """Read and divide the preferences that `data` names; of a run, what it is, without its pairs."""
    if is_run(config.train):
        return loaded_run(config, renderer)
    return load(config, seed, preferences=True)


def prepare_preferences(
    loaded: Loaded, renderer: Renderer, config: DataConfig, context: int, virtual: int = 0
) -> tuple[dict[str, Preferences], dict[str, int]]:
    """(pairs by side: train, eval, and test if there is one; counts). DataError when one is left empty.

    The messages of `train` are those of all sides.
    """
    length, bad = room(config, context, virtual), list[str]()
    if is_run(config.train):
        given: dict[str, Iterable[Sided]] = dict(run_pairs(config, renderer))
        special = 0
    else:
        parts = {"train": loaded.train, "eval": loaded.eval, "test": loaded.test}
        given = {side: _rendered(rows, renderer, config, bad) for side, rows in parts.items() if rows}
        special = sum(holds_special(one, renderer) for rows in parts.values() for one in rows)
    counts = {**loaded.counts, "train_special_tokens_in_text": special}
    sides: dict[str, Preferences] = {}
    for side, pairs in given.items():
        sides[side] = _kept(pairs, bad, config, length, side)
        counts |= {f"{side}_{name}": count for name, count in sides[side].counts.items()}
    counts |= {"bad: not rendered": len(bad)} if bad else {}
    sides["train"] = replace(sides["train"], messages=[*loaded.bad, *bad])
    return sides, counts


def chosen_of(pairs: Sequence[Preference], end_ids: Iterable[int], side: str) -> list[Prompt]:
    """Each chosen answer once, whatever number of others it beat. DataError where all are ties."""
    rows = {(tuple(row.prompt_ids), tuple(row.chosen_ids)): row for row in reversed(pairs) if row.weight == 1}
    if not rows:
        raise DataError(f"every {SIDES[side]} pair is a tie, so there is no chosen answer to judge by; give more data")
    ends = set(end_ids)
    return keyed(
        Example(row.prompt_ids, row.chosen_ids, row.chosen_ids[-1] in ends, row.source)
        for row in reversed(rows.values())
    )


def _rendered(rows: Iterable[Conversation], renderer: Renderer, config: DataConfig, bad: list[str]) -> Iterable[Sided]:
    """Both answers of each row; a tie gives two pairs, one each way round, that count half.

    A row that the template does not render as prompt and answer is a bad row: with `bad_rows: skip` it goes to `bad`.
    """
    for row in rows:
        other = row.other
        assert other is not None
        turned = replace(row, messages=(*row.messages[:-1], Message("assistant", other.rejected)))
        try:
            (chosen,), (rejected,) = renderer.render(row), renderer.render(turned)
        except DataError as fault:
            if config.bad_rows == "error":
                raise
            bad.append(str(fault))
            continue
        votes = list(other.votes)
        if other.tie:
            yield chosen, rejected, 0.5, votes
            yield rejected, chosen, 0.5, [1 - vote for vote in votes]
        else:
            yield chosen, rejected, 1.0, votes


def _kept(pairs: Iterable[Sided], bad: list[str], config: DataConfig, length: int, side: str) -> Preferences:
    """The pairs of which both answers fit and are not the same tokens."""
    rows: list[Preference] = []
    done = {"too_long": 0, "truncated": 0, "identical": 0}
    for chosen, rejected, weight, votes in pairs:
        kept, cut = fit([chosen, rejected], length, config.too_long)
        if len(kept) < 2:
            done["too_long"] += 1
        elif kept[0].answer_ids == kept[1].answer_ids:
            done["identical"] += 1
        else:
            done["truncated"] += bool(cut["truncated"])
            ids = (kept[0].answer_ids, kept[1].answer_ids)
            rows.append(Preference(chosen.prompt_ids, *ids, chosen.source, weight, votes))
    if not rows:
        raise DataError(
            f"none of the {side} pairs can be used: {done['too_long']} do not fit {length} tokens, {done['identical']} "
            "have the same answer twice; use shorter data, or set data.too_long=truncate"
            + (f"; {len(bad)} are not rendered, the last: {bad[-1]}" if bad else "")
        )
    return Preferences(rows, {**done, "pairs": len(rows)}, [])
