"""The sheet of a test: held-out prompts as they are asked, wrapped as `evaluation.prompting` says."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparring.config import PromptingConfig
from sparring.data.messages import Conversation, Message, Renderer, answer_places
from sparring.data.pairs import Prompt
from sparring.errors import ConfigError, DataError
from sparring.evaluation.prompting.styles import STYLES, Material, Question, Style, template
from sparring.session import Session


@dataclass(frozen=True, slots=True)
class Sheet:
    """P prompts of a test.

    plain      as the data have them
    prompts    as they are asked first; keys and real answers are the plain ones'
    questions  their turns; empty if nothing is asked but the prompt
    """

    plain: list[Prompt]
    prompts: list[Prompt]
    questions: list[Question]
    style: Style

    @property
    def likely(self) -> bool:
        """Whether a real answer, too, has a likelihood: not where thinking stands before it."""
        return not self.style.thinks


def make_sheet(session: Session, prompts: list[Prompt], side: str, limit: int) -> Sheet:
    """Wrap the prompts of one side of the data (`eval`, `test`); what does not fit stays as it is, and is said.

    limit  the most tokens an answer may have
    """
    config, renderer = session.config.evaluation.prompting, session.renderer
    style = STYLES[config.style]
    if config.style == "none":
        return Sheet(prompts, prompts, [], style)
    conversations: Sequence[Conversation] = getattr(session.loaded, side)
    known = _known(renderer, conversations, session.config.data.turns)
    rules = read_rules(config) if config.style == "rules" else ""
    material = Material(rules, tuple(shots(session.loaded.train, config)))
    asked, questions, shown = [], [], []
    for prompt in prompts:
        question = known[tuple(prompt.prompt_ids)]
        room = session.ring.context - (limit if style.thinks else max(1, len(prompt.real_ids)))
        wrapped, ids, count = _fitting(session, style, question, material, room)
        asked.append(prompt if ids is None else replace(prompt, prompt_ids=ids))
        questions.append(wrapped)
        shown.append(count)
    _say(session, config, shown)
    return Sheet(prompts, asked, questions, style)


def _fitting(
    session: Session, style: Style, question: Question, material: Material, room: int
) -> tuple[Question, list[int] | None, int]:
    """(the question wrapped, its ids, examples in it); with as many examples as fit; ids None: not wrapped."""
    for count in range(len(material.examples), -1, -1):
        wrapped = style.first(question, replace(material, examples=material.examples[:count]))
        ids = session.renderer.prompt(wrapped.messages, wrapped.chat)
        if len(ids) <= room:
            return wrapped, ids, count
    return question, None, -1


def _say(session: Session, config: PromptingConfig, shown: list[int]) -> None:
    bare = shown.count(-1)
    if bare:
        session.run.warn(
            f"{bare} of {len(shown)} prompts are asked without evaluation.prompting.style {config.style}: wrapped, "
            "they would not fit the model's context"
        )
    fewer = sum(0 <= count < config.shots for count in shown) if config.style == "few_shot" else 0
    if fewer:
        mean = sum(max(0, count) for count in shown) / len(shown)
        session.run.warn(
            f"{fewer} of {len(shown)} prompts get fewer than evaluation.prompting.shots ({config.shots}) examples, on "
            f"average {mean:.1f}: more would not fit the model's context, or there are no more"
        )


def _known(renderer: Renderer, conversations: Iterable[Conversation], turns: str) -> dict[tuple[int, ...], Question]:
    """The question behind each prompt, by the prompt's ids."""
    known = {}
    for question in _questions(conversations, turns):
        try:
            known[tuple(renderer.prompt(question.messages, question.chat))] = question
        except DataError:  # refused by the template, so it is among no prompts (data.bad_rows: skip)
            continue
    return known


def _questions(conversations: Iterable[Conversation], turns: str) -> Iterable[Question]:
    for conversation in conversations:
        for place in answer_places(conversation.messages, turns):
            before = conversation.messages[:place] if conversation.chat else conversation.messages[place - 1 : place]
            yield Question(before, conversation.chat)


def read_rules(config: PromptingConfig) -> str:
    """The rule sheet; ConfigError if its file cannot be read."""
    if config.rules is None:
        return template("rules").strip()
    try:
        return Path(config.rules).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"evaluation.prompting.rules {config.rules} cannot be read ({error}); give a text file in UTF-8"
        ) from error


def shots(train: Iterable[Conversation], config: PromptingConfig) -> list[tuple[str, str]]:
    """(question, answer) of the training conversations of lowest hash, the same for every seed; one per question."""
    if config.style != "few_shot":
        return []
    found = {question: answer for question, answer in map(_exchange, train)}
    return heapq.nsmallest(config.shots, found.items(), key=_rank)


def _exchange(conversation: Conversation) -> tuple[str, str]:
    """The first answer of a conversation, and what was asked."""
    place = answer_places(conversation.messages, "first")[0]
    before: tuple[Message, ...] = conversation.messages[:place]
    return before[-1].content, conversation.messages[place].content


def _rank(item: tuple[str, str]) -> str:
    return hashlib.sha256("\n".join(item).encode("utf-8", "surrogatepass")).hexdigest()
