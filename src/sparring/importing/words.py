"""An adapter's tokenizer beside its base's: which template it was trained with, and whether the base can follow.

TRL and Unsloth save a tokenizer in the adapter's folder. What answers are asked with is the base's tokenizer here, so
anything of the adapter's that would change a token must be taken over, as its template is, or refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import ModelConfig

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True, slots=True)
class Words:
    """What came of the comparison.

    said      one line for people
    template  the chat template that the adapter was trained with, if it is not the base's; else None
    refusal   why the base's tokenizer cannot serve, in a sentence; empty if it can
    """

    said: str
    template: str | None = None
    refusal: str = ""
    notes: tuple[str, ...] = ()


def compare_words(folder: Path, base_folder: Path, config: ModelConfig) -> Words:
    """Compare the tokenizer in an adapter's folder, if there is one, with its base's; loads no model."""
    template = _template_file(folder)
    mine = _load(base_folder, config)
    if not any((folder / name).exists() for name in FILES):
        if template is None or template == _template(mine):
            return Words("none beside the adapter; the base's is used")
        return Words("none beside the adapter but a chat template, which is used", template)
    theirs = _load(folder, config)
    if theirs is None or mine is None:
        whose, where = ("adapter's", folder) if theirs is None else ("base's", base_folder)
        other = template if template != _template(mine) else None
        return Words(f"the {whose} in {where} cannot be read; the base's is used, not compared", other)
    refusal = _refusal(folder, theirs, mine)
    notes = _notes(theirs, mine)
    said = "beside it: the same tokens as the base's" if not refusal else "beside it: other tokens than the base's"
    template = template if template is not None else _template(theirs)
    if template is None and _template(mine) is not None:
        notes.append("its tokenizer brings no chat template, so chats are asked with the base's")
    if template is None or template == _template(mine):
        return Words(f"{said}{', and its template' if template else ''}", None, refusal, tuple(notes))
    what = "another chat template" if _template(mine) is not None else "a chat template, which the base has not"
    return Words(f"{said}, with {what}: the adapter's is used", template, refusal, tuple(notes))


def _refusal(folder: Path, theirs: Any, mine: Any) -> str:
    """Tokens that the base's tokenizer would make otherwise. A padding token is never read."""
    here, there = mine.get_vocab(), theirs.get_vocab()
    pad = theirs.pad_token
    other = sorted(token for token, number in there.items() if here.get(token) != number and token != pad)
    if not other:
        return ""
    what = f"{len(other)} tokens" if len(other) > 1 else "a token"
    return (
        f"the adapter's tokenizer has {what} that the base's has not, or has under another number ({other[0]!r}), so "
        "the base would read other tokens than it was trained on; copy the base's folder, put the tokenizer files of "
        f"{folder} in place of its own, and give the copy with --base"
    )


def _notes(theirs: Any, mine: Any) -> list[str]:
    notes = []
    if theirs.eos_token != mine.eos_token:
        notes.append(
            f"its tokenizer ends texts with {theirs.eos_token!r}, the base's with {mine.eos_token!r}: a chat ends as "
            "its template says, but plain text ends as the base's"
        )
    first = (theirs("a").input_ids[:1], mine("a").input_ids[:1])
    if first[0] != first[1]:
        notes.append("its tokenizer opens texts otherwise than the base's, whose opening is used")
    return notes


def _template(tokenizer: Any) -> str | None:
    """The template for chats of a tokenizer, of several the default one."""
    found = None if tokenizer is None else tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None


def _template_file(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _load(folder: Path, config: ModelConfig) -> Any:
    """A tokenizer; None if transformers cannot read it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (ValueError, OSError, KeyError, AttributeError, TypeError):
        return None
