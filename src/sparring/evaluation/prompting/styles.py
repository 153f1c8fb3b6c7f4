"""What a question is wrapped in, style by style: pure functions on turns, and a table.

A question of a chat is its turns, the user's last; of plain text one turn, the opening that is to be continued.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from sparring.data.messages import Message

THOUGHT = 256  # tokens that thinking or criticism may take beside the answer
MARK = "answer:"


@dataclass(frozen=True, slots=True)
class Question:
    """Turns that ask for an answer. chat: rendered with the template; else one turn of plain text."""

    messages: tuple[Message, ...]
    chat: bool

    @property
    def text(self) -> str:
        """The last turn."""
        return self.messages[-1].content

    def asking(self, text: str) -> Question:
        """The same with another last turn."""
        return replace(self, messages=(*self.messages[:-1], Message("user", text)))


@dataclass(frozen=True, slots=True)
class Material:
    """What wrappings are made of: the rule sheet, and examples (question, answer)."""

    rules: str = ""
    examples: tuple[tuple[str, str], ...] = ()


def template(name: str) -> str:
    """The text file of a style."""
    return _read(f"{name}.txt")


@cache
def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Style:
    """One way to ask.

    first   the question as it is asked first
    then    what is asked after each answer: (question as last asked, what was said) → the next
    extra   tokens that each generation may have beside the answer's
    thinks  whether other text stands before the answer, so that a real answer has no likelihood of its own
    final   from the last text to the answer in it
    """

    first: Callable[[Question, Material], Question]
    then: tuple[Callable[[Question, str], Question], ...] = ()
    extra: tuple[int, ...] = (0,)
    thinks: bool = False
    final: Callable[[str], str] = str


def _none(question: Question, material: Material) -> Question:
    return question


def _rules(question: Question, material: Material) -> Question:
    """A chat gets the sheet as its system message, behind one it has; plain text gets it in front."""
    if not question.chat:
        return question.asking(f"{material.rules}\n\n{question.text}")
    turns = question.messages
    if turns[0].role == "system":
        return replace(question, messages=(Message("system", f"{turns[0].content}\n\n{material.rules}"), *turns[1:]))
    return replace(question, messages=(Message("system", material.rules), *turns))


def _few_shot(question: Question, material: Material) -> Question:
    """A chat gets the examples as turns before its own; plain text gets them in front."""
    if not question.chat:
        form = template("few_shot")
        shown = "".join(form.format(question=asked, answer=answer) for asked, answer in material.examples)
        return question.asking(shown + question.text)
    turns = question.messages
    head = 1 if turns[0].role == "system" else 0
    shots = [(Message("user", asked), Message("assistant", answer)) for asked, answer in material.examples]
    return replace(question, messages=(*turns[:head], *(turn for shot in shots for turn in shot), *turns[head:]))


def _chain_of_thought(question: Question, material: Material) -> Question:
    asked = template("chain_of_thought").rstrip().format(question=question.text)
    return question.asking(asked if question.chat else asked + "\n\n")


def _behind_mark(text: str) -> str:
    """What follows the last "Answer:", else all of it."""
    at = text.lower().rfind(MARK)
    return text.strip() if at < 0 else text[at + len(MARK) :].strip()


def _reflect(part: int) -> Callable[[Question, str], Question]:
    def ask(question: Question, said: str) -> Question:
        request = template("reflection").split("----")[part].strip()
        if question.chat:
            turns = (*question.messages, Message("assistant", said), Message("user", request))
            return replace(question, messages=turns)
        return question.asking(f"{question.text}{said}\n\n{request}\n\n")

    return ask


STYLES: dict[str, Style] = {
    "none": Style(_none),
    "rules": Style(_rules),
    "few_shot": Style(_few_shot),
    "chain_of_thought": Style(_chain_of_thought, extra=(THOUGHT,), thinks=True, final=_behind_mark),
    "reflection": Style(_none, (_reflect(0), _reflect(1)), (0, THOUGHT, 0), True, str.strip),
}
