"""A chat on a terminal, or through pipes: `talk` is for people, `answer_lines` for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sparring.chatting.chat import Chat, Said, Told, Voice
from sparring.chatting.commands import COMMANDS, obey
from sparring.errors import InputError, SparringError
from sparring.report.records import text

NARROW = 72  # columns below which two answers do not stand side by side
OFTEN = 0.05  # seconds between two drawings of the columns
CONTINUES = "this model was trained on plain text: it continues what you write, without a template or a memory"


def talk(chat: Chat, console: Console) -> None:
    """Questions and answers until the user leaves."""
    import readline  # noqa: F401  input() then has lines that can be edited, and a history

    names = " and ".join(voice.label for voice in chat.voices)
    console.print(f"{names} · /help for commands, Ctrl-D quits", style="dim", markup=False, highlight=False)
    if not chat.template:
        _note(console, CONTINUES)
    stopped = False
    while True:
        try:
            line = text(input("> "))
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            if stopped:
                return
            stopped = True
            _note(console, "Ctrl-C again quits, as Ctrl-D does")
            continue
        if line.strip() == "/quit":
            return
        stopped = bool(line.strip()) and _turn(chat, console, line)


def _turn(chat: Chat, console: Console, line: str) -> bool:
    """One line of the user's; returns whether its answer was stopped."""
    try:
        if line.startswith("/"):
            _note(console, obey(chat, line))
            return False
        wide = len(chat.voices) > 1 and console.width >= NARROW
        said = _beside(chat, console, line) if wide else _below(chat, console, line)
    except SparringError as error:
        _note(console, str(error))
        return False
    for voice, one in zip(chat.voices, said, strict=True):
        for note in _remarks(chat, voice, one):
            _note(console, note)
    stopped = any(one.stopped for one in said)
    if stopped:
        _note(console, "stopped; Ctrl-C again quits")
    return stopped


def _below(chat: Chat, console: Console, line: str) -> list[Said]:
    """Answers as they come, one after the other."""

    def show(voice: Voice) -> Told:
        if len(chat.voices) > 1:
            if voice is not chat.voices[0]:
                console.print()
            console.print(Text(voice.label, style="bold"))
        return tell

    def tell(piece: str) -> None:
        sys.stdout.write(text(piece))
        sys.stdout.flush()

    try:
        return chat.ask(line, show)
    finally:
        console.print()


def _beside(chat: Chat, console: Console, line: str) -> list[Said]:
    """Two answers side by side. While they grow, what fits the screen is shown of them: their ends."""
    texts = {voice.label: "" for voice in chat.voices}
    drawn = 0.0

    def show(voice: Voice) -> Told:
        def tell(piece: str) -> None:
            nonlocal drawn
            texts[voice.label] += text(piece)
            if time.monotonic() - drawn > OFTEN:
                live.update(columns(texts, console, console.height - 1), refresh=True)
                drawn = time.monotonic()

        return tell

    live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    with live:
        try:
            return chat.ask(line, show, any_order=True)
        finally:
            live.update(columns(texts, console))


def columns(texts: dict[str, str], console: Console, most: int | None = None) -> Table:
    """Texts in columns of equal width under their names; `most`: lines at the end that are shown, the name's included.

    Lines are broken here, because only the end of what they come to may be wanted.
    """
    width = (console.width - 2 * (len(texts) - 1)) // len(texts)
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    cells = []
    for said in texts.values():
        table.add_column(width=width, no_wrap=True)
        lines = [line for part in Text(said).split("\n", allow_blank=True) for line in part.wrap(console, width)]
        cells.append(Text("\n").join(lines if most is None else lines[-max(1, most - 1) :]))
    table.add_row(*(Text(name, style="bold", overflow="ellipsis") for name in texts))
    table.add_row(*cells)
    return table


def _remarks(chat: Chat, voice: Voice, said: Said) -> Iterator[str]:
    """What must be said of an answer."""
    name = f"{voice.label}: " if len(chat.voices) > 1 else ""
    if said.dropped:
        turns = "turn" if said.dropped == 1 else f"{said.dropped} turns"
        yield f"{name}the context is full: the oldest {turns} left out from here on"
    if said.cut:
        yield f"{name}cut at --max-new-tokens {chat.limit}, or where the context ends"


def _note(console: Console, said: str) -> None:
    console.print(text(said), style="dim", markup=False, highlight=False, soft_wrap=True)


# ---------------------------------------------------------------- pipes


def answer_lines(chat: Chat, lines: Iterable[bytes], out: TextIO, notes: TextIO) -> None:
    """One answer per line of input, as plain text and with no prompts; commands are obeyed, remarks go to `notes`.

    Where two voices answer, a name and a colon stand before each. A blank line gets a blank line.
    Raises InputError for a line that is not UTF-8 or does not fit the context.
    """
    if not chat.template:
        print(f"note: {CONTINUES}", file=notes)
    for number, raw in enumerate(lines, start=1):
        with _numbered(number):
            line = _read(raw)
            word = line.split(" ")[0]
            if word == "/quit":
                return
            if word in COMMANDS:
                print(f"note: {obey(chat, line)}", file=notes)
                continue
            said = chat.ask(line, lambda voice: lambda piece: None, any_order=True) if line.strip() else []
        for voice, one in zip(chat.voices, said, strict=False):
            for note in _remarks(chat, voice, one):
                print(f"note: line {number}: {note}", file=notes)
            print(f"{voice.label}: {one.text}" if len(chat.voices) > 1 else one.text, file=out)
        if not said:
            print(file=out)
        out.flush()
        if any(one.stopped for one in said):
            raise KeyboardInterrupt


def _read(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 ({error.reason} at byte {error.start}); convert it") from None


@contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Say at which line of the input something is wrong."""
    try:
        yield
    except SparringError as error:
        raise type(error)(f"line {number}: {error}") from error
