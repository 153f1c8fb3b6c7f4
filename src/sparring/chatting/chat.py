"""A conversation with a player, or with two that are asked the same: what is asked, streamed, left out and kept.

Both sit on the one base in turn. The first answer to a question is, token for token, what `sparring sample` gives for
the same prompt, seed and settings. Nothing here knows a terminal.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sparring.best_of import choose_best
from sparring.chatting.spelling import Spelling
from sparring.config import GenerationConfig
from sparring.data.messages import Message
from sparring.errors import InputError
from sparring.generation.base import Answer
from sparring.generation.local import LocalGenerator
from sparring.generation.sampling import stream_keys
from sparring.models.players import Player, Ring
from sparring.rewards.scorer import Scorer

Told = Callable[[str], None]


@dataclass
class Voice:
    """One of those who answer, with its own conversation.

    turns  (question, answer), oldest first
    left   how many of the oldest were left out of the last prompt, to fit the context
    """

    label: str
    player: Player
    turns: list[tuple[str, str]] = field(default_factory=list)
    left: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """What a voice answered. cut: at the limit, without an end; stopped: by the user; dropped: turns newly left out."""

    text: str
    cut: bool = False
    stopped: bool = False
    dropped: int = 0


@dataclass
class Chat:
    """One or two voices that answer the same questions.

    template  False: the model continues text, with no template and no memory
    asked     questions since the start or the last reset; each has random numbers of its own
    best_of   how many answers `scorer` chooses from; with more than one, an answer is shown when it is whole
    """

    ring: Ring
    settings: GenerationConfig
    voices: list[Voice]
    template: bool
    seed: int = 0
    limit: int = 256
    system: str = ""
    asked: int = 0
    best_of: int = 1
    scorer: Scorer | None = None

    def ask(self, question: str, show: Callable[[Voice], Told], any_order: bool = False) -> list[Said]:
        """Every voice's answer; `show(voice)` gives what is called with each piece of its text.

        any_order  whoever is seated may begin: a seat that is taken with its adapter merged costs about as much as
                   sixteen tokens
        Ctrl-C ends the turn: what was said until then is kept, and who was not asked yet is not. Raises InputError,
        before anything is said, for a question that does not fit the context.
        """
        prompts = [self._prompt(voice, question) for voice in self.voices]
        said = [Said("", stopped=True) for _ in self.voices]
        order = list(range(len(self.voices)))
        if any_order and self.voices[-1].player.fingerprint == self.ring.seated:
            order.reverse()
        try:
            for place in order:
                voice, (ids, left) = self.voices[place], prompts[place]
                said[place] = self._answer(voice, question, ids, left, show(voice))
                if said[place].stopped:
                    break
        finally:
            self.asked += self.template
        return said

    def reset(self) -> None:
        """Forget what was said; the same questions get the same answers again."""
        self.asked = 0
        for voice in self.voices:
            voice.turns, voice.left = [], 0

    def _answer(self, voice: Voice, question: str, ids: list[int], left: int, told: Told) -> Said:
        dropped = max(0, left - voice.left)
        spelling = Spelling(self.ring.base.renderer.decode)
        cut = stopped = False
        try:
            if self.ring.seated != voice.player.fingerprint:
                with unbroken():
                    self.ring.seat(voice.player, self.settings.merge)
            generator = LocalGenerator(self.ring.model, self.ring.base, self.settings)
            keys = stream_keys(self.seed, 0, [self.asked] * self.best_of, list(range(self.best_of)))
            if self.scorer is None:
                given = generator([ids], keys, self.limit, lambda _, token: told(spelling.add(token)))[0]
            else:
                given = self._chosen(ids, generator([ids] * self.best_of, keys, self.limit), self.scorer)
                spelling.ids = list(given.ids)
            cut = given.finish == "length"
        except KeyboardInterrupt:
            stopped = True
        told(spelling.rest())
        if spelling.ids or not stopped:
            voice.turns.append((question, spelling.shown))
            voice.left = left
        return Said(spelling.shown, cut, stopped, dropped)

    def _chosen(self, ids: list[int], answers: list[Answer], scorer: Scorer) -> Answer:
        """The best answer by the scorer, which may take the seat."""
        with unbroken():
            return answers[choose_best(scorer, ids, [answer.ids for answer in answers])[0]]

    def _prompt(self, voice: Voice, question: str) -> tuple[list[int], int]:
        """(token ids, how many of the oldest turns are left out). A quarter of the context is kept for the answer."""
        context, ids = self.ring.context, list[int]()
        most = context - min(self.limit, context // 4)
        count = len(voice.turns) if self.template else 0
        for left in range(min(voice.left, count), count + 1):
            ids = self.ring.base.renderer.prompt(self._messages(voice, question, left), chat=self.template)
            if len(ids) <= most:
                return ids, left
        if len(ids) < context:
            return ids, count
        raise InputError(f"this has {len(ids)} tokens, but the model's context is {context}; say it in fewer words")

    def _messages(self, voice: Voice, question: str, left: int) -> tuple[Message, ...]:
        turns = [Message("user", question)]
        if self.template:
            turns = [*as_messages(voice.turns[left:]), *turns]
        return (*([Message("system", self.system)] if self.template and self.system else []), *turns)


def as_messages(turns: list[tuple[str, str]]) -> list[Message]:
    """(question, answer) after (question, answer), as the turns of a chat."""
    return [m for asked, said in turns for m in (Message("user", asked), Message("assistant", said))]


@contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C waits until what is inside is done: weights that are half changed would be nobody's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
