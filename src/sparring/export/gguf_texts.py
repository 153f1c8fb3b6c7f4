"""Are texts and chats the same tokens in llama.cpp? Asked of its own tokenizer, with the template in the file."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from sparring.data.messages import Message, Renderer
from sparring.export.gguf_tokenizer import DIFFICULT, WITHOUT_MARKS, as_pieces, ids_of


def compare_texts(engine: Any, renderer: Renderer, prompts: Sequence[list[int]]) -> tuple[list[str], int, int]:
    """(where the tokens of texts differ, how many are the same, how many cannot be): difficult texts, and prompts."""
    differ, same, apart = [], 0, 0
    twin = None
    if engine.metadata["tokenizer.ggml.model"] == "llama":
        twin = as_pieces(renderer.tokenizer, engine.metadata["tokenizer.ggml.add_space_prefix"] == "true")
    spoken = _spoken(renderer, prompts)
    for text in [*_comparable(engine, renderer), *spoken]:
        ours = list(renderer.tokenizer(text, add_special_tokens=False).input_ids)
        theirs = engine.tokenize(text.encode(), add_bos=False, special=True)
        if ours == theirs:
            same += 1
        elif twin is not None and theirs == ids_of(twin, text) and text not in spoken:
            apart += 1
        else:
            differ.append(f"{text[:30]!r} is {len(ours)} tokens {ours[:8]}… and there {len(theirs)} {theirs[:8]}…")
    return differ, same, apart


def _spoken(renderer: Renderer, prompts: Sequence[list[int]]) -> list[str]:
    """The prompts that are plain text, which must be the same."""
    texts = [(renderer.decode(prompt), prompt) for prompt in prompts]
    return [text for text, prompt in texts if renderer.prompt((Message("user", text),), chat=False) == prompt]


def _comparable(engine: Any, renderer: Renderer) -> list[str]:
    """The difficult texts but for what llama.cpp knows less of: normal forms, with some names marks, the unknown."""
    normalizer = renderer.tokenizer.backend_tokenizer.normalizer
    marks = engine.metadata["tokenizer.ggml.pre"] not in WITHOUT_MARKS
    return [
        text
        for text in DIFFICULT
        if text
        and (marks or not _marked(text))
        and (normalizer is None or _same(normalizer, text))
        and renderer.tokenizer.unk_token_id not in renderer.tokenizer(text, add_special_tokens=False).input_ids
    ]


def _marked(text: str) -> bool:
    """Whether letters carry combining marks."""
    return any(unicodedata.category(letter) in ("Mn", "Mc") for letter in text)


def _same(normalizer: Any, text: str) -> bool:
    """Whether a normalizer leaves a text as it is, but for spaces written as ▁."""
    return str(normalizer.normalize_str(text)).replace("▁", " ") in (text, f" {text}")


def compare_chats(engine: Any, renderer: Renderer, chats: Sequence[tuple[Message, ...]]) -> tuple[list[str], int]:
    """(where rendered chats differ, how many were compared): by the template in the file, and its tokenizer."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = engine.metadata.get("tokenizer.chat_template")
    if template is None:
        return [], 0
    bos, eos = (renderer.tokenizer.bos_token or ""), renderer.tokenizer.eos_token
    formatter = Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos, add_generation_prompt=True)
    differ = []
    for messages in chats:
        ours = renderer.prompt(messages, chat=True)
        turns = renderer.turns(messages)
        text = formatter(messages=turns).prompt
        theirs = engine.tokenize(text.encode(), add_bos=False, special=True)
        if ours != theirs:
            differ.append(
                f"a chat of {len(messages)} turns is {len(ours)} tokens and there {len(theirs)} ({text[:60]!r})"
            )
    return differ, len(chats)
