"""From conversations to token ids that fit the context: the examples of a run, counted."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.config import DataConfig
from sparring.data.load import Loaded
from sparring.data.messages import Conversation, Example, Renderer, fit
from sparring.data.pairs import Prompt, keyed
from sparring.errors import DataError


def prepare(
    loaded: Loaded, renderer: Renderer, config: DataConfig, context: int
) -> tuple[list[Prompt], list[Prompt], dict[str, int]]:
    """(training examples, held-out examples, counts). Raises DataError when either is left empty."""
    length = min(config.max_length or context, context)
    if config.max_length and config.max_length > context:
        raise DataError(
            f"data.max_length is {config.max_length}, but the model's context is {context} tokens; "
            f"give at most {context}"
        )
    train, dropped = _examples(loaded.train, renderer, config, length, "train")
    held_out, dropped_eval = _examples(loaded.eval, renderer, config, length, "eval")
    counts = {**loaded.counts}
    counts |= {f"train_{name}": count for name, count in dropped.items()}
    counts |= {f"eval_{name}": count for name, count in dropped_eval.items()}
    counts |= {"train_examples": len(train), "eval_examples": len(held_out)}
    return keyed(train), keyed(held_out), counts


def _examples(
    conversations: Sequence[Conversation], renderer: Renderer, config: DataConfig, length: int, side: str
) -> tuple[list[Example], dict[str, int]]:
    rendered = [example for item in conversations for example in renderer.render(item, config.turns)]
    kept, counts = fit(rendered, length, config.too_long)
    if not kept:
        shortest = min(len(example.prompt_ids) for example in rendered)
        raise DataError(
            f"none of the {len(rendered)} {side} examples fits {length} tokens (the shortest prompt has {shortest}); "
            "use shorter data, a model with a longer context, or data.too_long=truncate"
        )
    return kept, counts
