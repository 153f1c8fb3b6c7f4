"""A conversation with a player, or with two that are asked the same: what is asked, streamed, left out and kept.

Both sit on the one base in turn. The first answer to a question is, token for token, what `sparring sample` gives for
the same prompt, seed and settings. Nothing here knows a terminal.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from sparring.best_of import choose_best, chooser, chooser_settings
from sparring.browse import another, find_run, is_model, open_model, open_player, read_settings
from sparring.config import Config, GenerationConfig
from sparring.data.messages import Message
from sparring.errors import InputError, nearest
from sparring.generation.base import Answer
from sparring.generation.local import LocalGenerator
from sparring.generation.sampling import stream_keys
from sparring.models.players import Player, Ring
from sparring.names import player_name
from sparring.report.records import read_run
from sparring.rewards.scorer import Scorer

Told = Callable[[str], None]

COMMANDS = {
    "/reset": "forget what was said",
    "/system": "TEXT: what the model is told first; without a text, nothing",
    "/save": "FILE: write the conversation as JSON lines, one per model",
    "/help": "these lines",
    "/quit": "leave, as Ctrl-D does",
}


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


@final
class Spelling:
    """The text of an answer as its tokens come: never half a character, and in the end what `decode` gives."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self.ids: list[int] = []
        self.shown = ""

    def add(self, token: int) -> str:
        """What there is to show more after one more token."""
        self.ids.append(token)
        whole = self._decode(self.ids).rstrip("\N{REPLACEMENT CHARACTER}")  # bytes of a character that is not whole yet
        return self._more(whole) if whole.startswith(self.shown) else ""

    def rest(self) -> str:
        """What is still to be shown when no token follows."""
        whole = self._decode(self.ids)
        if not whole.startswith(self.shown):  # a tokenizer that takes back what it wrote: go on where that began
            same = zip(whole, self.shown, strict=False)
            self.shown = whole[: next((i for i, (a, b) in enumerate(same) if a != b), min(len(whole), len(self.shown)))]
        return self._more(whole)

    def _more(self, whole: str) -> str:
        more = whole[len(self.shown) :]
        self.shown = whole
        return more


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
            turns = [*_told(voice.turns[left:]), *turns]
        return (*([Message("system", self.system)] if self.template and self.system else []), *turns)


def _told(turns: list[tuple[str, str]]) -> list[Message]:
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


# ---------------------------------------------------------------- who answers


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for; None: what the run has."""

    player: str = "best"
    vs: str | None = None
    temperature: float = 1.0
    top_p: float | None = None
    max_new_tokens: int = 256
    seed: int = 0
    system: str | None = None
    best_of: int = 1
    scorer: str | None = None


def open_chat(which: str, runs: Path, wishes: Wishes) -> Chat:
    """A chat with a run's player, or with a model's folder. Raises InputError for what there is not."""
    folder = Path(which).expanduser()
    if is_model(folder):
        if wishes.vs is not None or wishes.player not in ("best", "base"):
            raise InputError(f"{folder} is a model's folder, which has no other players; leave --player and --vs out")
        opened, voices = open_model(folder), [folder.resolve().name]
        players = [opened.player]
    else:
        run = find_run(which, runs)
        names = [player_name(run, name) for name in (wishes.player, *([wishes.vs] if wishes.vs else []))]
        if len(set(names)) < len(names):
            raise InputError(f"both are {names[0]}; give another player with --vs")
        chooser_settings(Config.model_validate(read_settings(run)), wishes.scorer, wishes.best_of)
        opened, record = open_player(run, names[0]), read_run(run)
        voices = [record.label(name) for name in names]
        players = [opened.player, *(another(run, name, opened.ring) for name in names[1:])]
    if wishes.system and not opened.chat:
        raise InputError("this model continues plain text, so there is nobody to tell; leave --system out")
    changes: dict[str, Any] = {"temperature": wishes.temperature}
    changes |= {} if wishes.top_p is None else {"top_p": wishes.top_p}
    return Chat(
        opened.ring,
        opened.config.generation.model_copy(update=changes),
        [Voice(label, player) for label, player in zip(voices, players, strict=True)],
        opened.chat,
        wishes.seed,
        wishes.max_new_tokens,
        (opened.config.data.system if wishes.system is None else wishes.system) or "" if opened.chat else "",
        best_of=wishes.best_of,
        scorer=chooser(opened.config, opened.ring, wishes.scorer, wishes.best_of),
    )


# ---------------------------------------------------------------- commands


def obey(chat: Chat, line: str) -> str:
    """Do what a line that begins with a slash says, /quit excepted; returns what to tell the user.

    Raises InputError for an unknown command, and for a file that is there or cannot be written.
    """
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name == "/reset":
        chat.reset()
        return "forgotten"
    if name == "/system":
        if not chat.template:
            raise InputError("this model continues plain text, so there is nobody to tell")
        chat.system = rest
        return "told from now on" if rest else "told nothing from now on"
    if name == "/save":
        return save(chat, rest)
    if name == "/help":
        return "\n".join(f"{word:<8} {about}" for word, about in COMMANDS.items())
    raise InputError(f'"{name}" is not a command; {nearest(name, COMMANDS)}')


def save(chat: Chat, name: str) -> str:
    """Write what was said, all of it, to a new file: a line of `messages` per voice; of plain text, one per opening."""
    if not name:
        raise InputError("/save needs a file's name, such as /save talk.jsonl")
    if not any(voice.turns for voice in chat.voices):
        raise InputError("nothing was said yet")
    path, rows = Path(name).expanduser(), list[dict[str, Any]]()
    opening = [Message("system", chat.system)] if chat.system else []
    for voice in chat.voices:
        if chat.template:
            messages = [{"role": m.role, "content": m.content} for m in [*opening, *_told(voice.turns)]]
            rows.append({"messages": messages, "model": voice.label})
        else:
            rows += [{"prompt": a, "completion": b, "model": voice.label} for a, b in voice.turns]
    try:
        with path.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except FileExistsError:
        raise InputError(f"{path} exists, and is not overwritten; give another name") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give another name") from None
    return f"saved: {path}"
