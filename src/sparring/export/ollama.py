"""An Ollama Modelfile: the file, how chats are written, where an answer ends, how long a chat may be.

Ollama writes chats with a Go template of its own, not with the one in the GGUF. Ours is made from what the chat
template does: it is asked to write a conversation of words that are found again, what stands between them is taken
for its parts, and conversations put together from the parts must be the template's own, letter for letter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sparring.data.messages import Message, Renderer
from sparring.errors import DataError, InputError
from sparring.export.gguf_tokenizer import adds_bos


@dataclass(frozen=True, slots=True)
class Parts:
    """What a template writes around the turns of a chat.

    first   before the first question, if there is no system text
    system  before a system text
    after   between a system text and the first question
    answer  between a question and its answer
    next    between an answer and the next question
    """

    first: str
    system: str
    after: str
    answer: str
    next: str

    def chat(self, messages: Sequence[Message]) -> str:
        """A chat that asks for an answer; roles alternate, with at most one system text, which is first."""
        text, before = "", ""
        for message in messages:
            opening = {"": self.first, "system": self.after, "assistant": self.next}
            lead = {"system": self.system, "assistant": self.answer}.get(message.role, opening.get(before, ""))
            text, before = text + lead + message.content, message.role
        return text + self.answer

    def go(self) -> str:
        """The same as a Go template over Ollama's .Messages, with no white space of its own."""
        first, system, after, answer, next_ = (
            _literal(part) for part in (self.first, self.system, self.after, self.answer, self.next)
        )
        return (
            '{{ $before := "" }}{{ range .Messages }}'
            f'{{{{ if eq .Role "system" }}}}{system}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}'
            f'{{{{ else if eq $before "system" }}}}{after}'
            f'{{{{ else if eq $before "assistant" }}}}{next_}'
            f"{{{{ else }}}}{first}{{{{ end }}}}"
            "{{ .Content }}{{ $before = .Role }}{{ end }}"
            f'{{{{ if ne $before "assistant" }}}}{answer}{{{{ end }}}}'
        )


@dataclass(frozen=True, slots=True)
class Modelfile:
    """An Ollama Modelfile. said: what its reader should know, a sentence; empty if nothing."""

    text: str
    said: str


def modelfile(file: str, renderer: Renderer, context: int, chat: bool = True, system: str = "") -> Modelfile:
    """A Modelfile for a GGUF file that lies beside it.

    context  tokens of a chat
    chat     whether the player was trained on chats; else Ollama is told to go on with plain text
    system   a system text that every chat opens with, as in the player's training
    """
    parts = parts_of(renderer) if chat else None
    said = ""
    if chat and parts is None:
        said = (
            "The chat template cannot be written in Ollama's language (what it writes around a turn depends on more "
            "than the turn before), so the Modelfile has none and Ollama guesses one from the GGUF; "
            "compare `ollama show --template` with the model's own"
        )
    if parts is not None and "strftime" in renderer.template:
        said = "The chat template writes the day's date; the Modelfile's is that of the day it was made."
    if parts is not None and _trims(renderer):
        more = "The chat template takes white space around a turn away, which Ollama does not."
        said = f"{said} {more}".strip()
    if '"""' in system:
        raise InputError('the system text holds """, which a Modelfile cannot; write it with other quotes')
    lines = [f"# {said}"] * bool(said) + [f"FROM ./{file}"]
    if parts is not None:
        lines.append(f'TEMPLATE """{parts.go()}"""')
    if not chat:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    if system and chat:
        lines.append(f'SYSTEM """{system}"""')
    for end in renderer.end_ids:
        lines.append(f"PARAMETER stop {json.dumps(renderer.tokenizer.convert_ids_to_tokens(end), ensure_ascii=False)}")
    lines.append(f"PARAMETER num_ctx {context}")
    return Modelfile("\n".join(lines) + "\n", said)


# Words that no template writes by itself.
_S = Message("system", "aq-system-aq")
_U, _V, _W = (Message("user", f"{word}-user-{word}") for word in ("bq", "cq", "dq"))
_A, _B = (Message("assistant", f"{word}-assistant-{word}") for word in ("eq", "fq"))
_TRIED = (
    (_U,),
    (_S, _U),
    (_U, _A, _V, _B, _W),
    (_S, _U, _A, _V, _B, _W),
    (Message("system", "Be brief.\n\nBe kind."), Message("user", "1 < 2?")),
    (Message("user", "Two\n\nlines, 'quotes' \"here\" {x}"), Message("assistant", "- a\n- b"), Message("user", "ü🙂")),
)  # fmt: skip


def parts_of(renderer: Renderer) -> Parts | None:
    """The parts of a chat template, without a bos that llama.cpp adds; None if it is not made of such parts."""
    plain = Renderer(renderer.tokenizer, renderer.portable)
    try:
        texts = [plain.text(messages, ask=True) for messages in _TRIED]
    except DataError:
        return None
    first, answer, next_ = _between(texts[2], (_U, _A, _V, _B, _W))[:3]
    system, after = _between(texts[3], (_S, _U, _A, _V, _B, _W))[:2]
    parts = Parts(first, system, after, answer, next_)
    if [parts.chat(messages) for messages in _TRIED] != texts or '"""' in parts.go():
        return None
    if adds_bos(renderer):
        bos = renderer.tokenizer.bos_token
        return Parts(first.removeprefix(bos), system.removeprefix(bos), after, answer, next_)
    return parts


def _trims(renderer: Renderer) -> bool:
    """Whether outer white space of a turn is lost."""
    plain = Renderer(renderer.tokenizer, renderer.portable)
    return " bq-user-bq\n" not in plain.text((Message("user", " bq-user-bq\n"),), ask=True)


def _between(text: str, messages: Sequence[Message]) -> list[str]:
    """What stands before each message in a text, in turn; empty where it is not found."""
    found = []
    for message in messages:
        lead, _, text = text.partition(message.content)
        found.append(lead)
    return found


def _literal(text: str) -> str:
    """Text that Go's templates leave as it is."""
    return text.replace("{{", '{{ "{{" }}')
