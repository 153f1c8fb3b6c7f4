"""What a run would learn from, as its data phase would make it, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparring.config import Config
from sparring.data.collate import Row
from sparring.data.load import Loaded
from sparring.data.messages import Renderer
from sparring.data.pairs import Preference, Prompt
from sparring.data.preferences import chosen_of, prepare_preferences
from sparring.data.prepare import prepare


@dataclass(frozen=True, slots=True)
class Sides:
    """By side (train, eval, and test if there is one).

    prompts  examples; of preference pairs each chosen answer once. Empty where only pairs were asked for
    pairs    preference pairs; empty where rows are none
    bad      of preference pairs: each row that was left out, and why
    """

    prompts: dict[str, list[Prompt]]
    pairs: dict[str, list[Preference]]
    counts: dict[str, int]
    bad: list[str] = field(default_factory=list)


def read_sides(config: Config, loaded: Loaded, renderer: Renderer, context: int, alone: bool = False) -> Sides:
    """Rendered and fitted to the context; raises as the data phase would. alone: pairs without their examples."""
    virtual = config.method.virtual
    if not loaded.compared:
        prompts, counts = prepare(loaded, renderer, config.data, context, virtual)
        return Sides(prompts, {}, counts)
    found, counts = prepare_preferences(loaded, renderer, config.data, context, virtual)
    pairs = {side: one.rows for side, one in found.items()}
    if alone:
        return Sides({}, pairs, counts, found["train"].messages)
    chosen = {side: chosen_of(rows, renderer.end_ids, side) for side, rows in pairs.items()}
    counts |= {f"{side}_examples": len(rows) for side, rows in chosen.items()}
    return Sides(chosen, pairs, counts, found["train"].messages)


def both(pair: Preference) -> list[Row]:
    """The rows of a pair: its prompt with each of its answers."""
    return [(pair.prompt_ids, pair.chosen_ids), (pair.prompt_ids, pair.rejected_ids)]
