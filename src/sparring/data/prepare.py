"""From conversations to token ids that fit the context: the examples of a run, counted."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.config import DataConfig
from sparring.data.load import Loaded
from sparring.data.messages import Conversation, Example, Renderer, fit
from sparring.data.pairs import Prompt, keyed
from sparring.errors import DataError


def prepare(
    loaded: Loaded, renderer: Renderer, config: DataConfig, context: int, virtual: int = 0
) -> tuple[dict[str, list[Prompt]], dict[str, int]]:
    """Examples by side (train, eval, and test if there is one), and counts. DataError when one is left empty.

    virtual  tokens that a player puts before every prompt; the context has to hold them too
    """
    length = room(config, context, virtual)
    sides: dict[str, list[Prompt]] = {}
    counts = {**loaded.counts}
    for side, rows in (("train", loaded.train), ("eval", loaded.eval), ("test", loaded.test)):
        if not rows:
            continue
        examples, dropped = _examples(rows, renderer, config, length, side)
        sides[side] = keyed(examples)
        counts |= {f"{side}_{name}": count for name, count in dropped.items()}
    counts |= {f"{side}_examples": len(rows) for side, rows in sides.items()}
    return sides, counts


def room(config: DataConfig, context: int, virtual: int) -> int:
    """The most tokens that a prompt and its answer may have together; DataError if `data.max_length` asks for more."""
    if virtual >= context - 1:
        raise DataError(
            f"method.length is {virtual} virtual tokens, but the model's context is {context}; give far fewer"
        )
    context -= virtual
    length = min(config.max_length or context, context)
    if config.max_length and config.max_length > context:
        raise DataError(
            f"data.max_length is {config.max_length}, but the model's context is {context} tokens"
            f"{f' beside {virtual} virtual ones' if virtual else ''}; give at most {context}"
        )
    return length


def _examples(
    conversations: Sequence[Conversation], renderer: Renderer, config: DataConfig, length: int, side: str
) -> tuple[list[Example], dict[str, int]]:
    rendered: list[Example] = []
    refused = special = 0
    for conversation in conversations:
        special += holds_special(conversation, renderer)
        try:
            rendered += renderer.render(conversation, config.turns)
        except DataError:
            if config.bad_rows == "error":
                raise
            refused += 1
    kept, counts = fit(rendered, length, config.too_long)
    if not kept:
        raise DataError(_nothing_fits(rendered, config, length, side))
    return kept, {**counts, "refused_by_template": refused, "special_tokens_in_text": special}


def holds_special(conversation: Conversation, renderer: Renderer) -> bool:
    """Whether a text holds what the tokenizer reads as a special token, such as `</s>`: it then acts as one."""
    texts = [message.content for message in conversation.messages]
    return any(token in text for text in texts for token in renderer.tokenizer.all_special_tokens)


def _nothing_fits(rendered: list[Example], config: DataConfig, length: int, side: str) -> str:
    if not rendered:
        return f"the chat template refuses every {side} row; give another model.template, or set data.bad_rows: error"
    prompt = min(len(example.prompt_ids) for example in rendered)
    whole = min(len(example.prompt_ids) + len(example.answer_ids) for example in rendered)
    ways = ["use shorter data", "raise data.max_length" if config.max_length else "take a model with a longer context"]
    if config.too_long != "truncate" and prompt < length:
        ways.append("set data.too_long=truncate")
    return (
        f"none of the {len(rendered)} {side} examples fits {length} tokens (the shortest prompt has {prompt}, the "
        f"shortest prompt with its answer {whole}); {', or '.join(ways)}"
    )
