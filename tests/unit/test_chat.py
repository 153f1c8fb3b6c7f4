"""Chat: the same tokens as `sample`, characters whole, a context that fills up, pipes, and a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tests.helpers import CHATML, byte_tokenizer, piece_tokenizer, save_base
from tests.talks import run_on, save_talker, sums

from sparring.browse import answer
from sparring.chatting import chat as module
from sparring.chatting.chat import Chat, Said, Voice
from sparring.chatting.commands import obey
from sparring.chatting.opening import Wishes, open_chat
from sparring.chatting.spelling import Spelling
from sparring.chatting.terminal import _beside, answer_lines, columns
from sparring.errors import InputError
from sparring.report.records import text as printable

pytestmark = pytest.mark.usefixtures("undrawn")

MAIN = "from sparring.cli import main; main()"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, and runs on it: `talk` of chats, `text` of plain text."""
    place = tmp_path_factory.mktemp("place")
    save_talker(place)
    texts = [{"prompt": f"{a} and {b}:", "completion": f" {a + b}"} for a in range(4) for b in range(6)]
    selfplay = {"iterations": 1, "batch_size": 5, "lr": 1e-3, "stop_nll_rise": 9.0, "stop_real_drop": 9.0}
    for name, rows in (("talk", sums(" é€😀")), ("text", texts)):
        run_on(place, name, rows, sft={"batch_size": 5, "lr": 2e-2, "epochs": 2}, selfplay=selfplay)
    return place


def opened(place: Path, run: str = "talk", **wishes: object) -> Chat:
    return open_chat(run, place / "runs", Wishes(**wishes))  # type: ignore[arg-type]


def said(chat: Chat, question: str) -> list[Said]:
    """The answers; what was shown of each must be its text."""
    shown: dict[str, list[str]] = {voice.label: [] for voice in chat.voices}
    found = chat.ask(question, lambda voice: shown[voice.label].append)
    for voice, one in zip(chat.voices, found, strict=False):
        assert "".join(shown[voice.label]) == one.text
    return found


# ---------------------------------------------------------------- the same tokens as sample


@pytest.mark.parametrize("run", ["talk", "text"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_is_that_of_sample(place: Path, run: str, temperature: float) -> None:
    chat = opened(place, run, player="0", vs="base", temperature=temperature, seed=3, max_new_tokens=30)
    mine = [one.text for one in said(chat, "1 and 2")]
    theirs = [answer(place / "runs" / run, "1 and 2", who, 1, 3, temperature, 30)[0] for who in ("0", "base")]
    assert mine == theirs
    assert mine[0] != mine[1]


def test_two_players_keep_their_own_conversations(place: Path) -> None:
    both = opened(place, player="sft", vs="base", max_new_tokens=6)
    alone = [opened(place, player=who, max_new_tokens=6) for who in ("sft", "base")]
    for question in ("1 and 2", "2 and 3", "again"):
        assert [one.text for one in said(both, question)] == [said(chat, question)[0].text for chat in alone]
    assert [voice.label for voice in both.voices] == ["θ₀ (SFT)", "base"]
    first = [turn[1] for turn in both.voices[0].turns]
    obey(both, "/reset")
    assert [said(both, question)[0].text for question in ("1 and 2", "2 and 3", "again")] == first


def test_who_is_seated_may_begin_and_answers_the_same(place: Path) -> None:
    chat, free = (opened(place, player="sft", vs="0", max_new_tokens=6) for _ in range(2))
    order: list[str] = []

    def show(voice: Voice) -> Callable[[str], None]:
        order.append(voice.label)
        return lambda piece: None

    for question in ("one", "two", "three"):
        found = free.ask(question, show, any_order=True)
        assert [one.text for one in found] == [one.text for one in said(chat, question)]
    first, second = (voice.label for voice in free.voices)
    assert order == [first, second, second, first, first, second]


def test_the_turns_before_are_asked_with_the_template(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = opened(place, max_new_tokens=4, system="Be brief.")
    renderer, asked = chat.ring.base.renderer, []
    plain = renderer.prompt
    monkeypatch.setattr(renderer, "prompt", lambda turns, chat: asked.append((turns, chat)) or plain(turns, chat))
    first = said(chat, "one")[0].text
    said(chat, "two")
    assert [(m.role, m.content) for m in asked[-1][0]] == [
        ("system", "Be brief."), ("user", "one"), ("assistant", first), ("user", "two"),
    ]  # fmt: skip
    assert asked[-1][1] is True


def test_plain_text_is_continued_without_what_was_said(place: Path) -> None:
    chat = opened(place, "text", max_new_tokens=5)
    first = said(chat, "1 and 2:")[0].text
    assert said(chat, "1 and 2:")[0].text == first
    with pytest.raises(InputError, match="plain text"):
        obey(chat, "/system Be brief.")
    with pytest.raises(InputError, match="plain text"):
        opened(place, "text", system="Be brief.")


def test_a_models_folder_can_be_talked_with(place: Path) -> None:
    chat = open_chat(str(place / "base"), place, Wishes(max_new_tokens=8))
    assert chat.template
    assert chat.voices[0].label == "base"
    assert said(chat, "1 and 2")[0].text == said(opened(place, player="base", max_new_tokens=8), "1 and 2")[0].text
    with pytest.raises(InputError, match="model's folder"):
        open_chat(str(place / "base"), place, Wishes(vs="sft"))


def test_two_must_be_two(place: Path) -> None:
    with pytest.raises(InputError, match="both are sft"):
        opened(place, player="sft", vs="sft")
    with pytest.raises(InputError, match='no player "7"'):
        opened(place, vs="7")


# ---------------------------------------------------------------- what does not fit, and what is stopped


def test_the_oldest_turns_are_left_out_when_the_context_is_full(place: Path) -> None:
    chat = opened(place, max_new_tokens=20, temperature=0.0, system="S")
    dropped = 0
    for turn in range(6):
        found = said(chat, f"question number {turn}")[0]
        dropped += found.dropped
        ids, left = chat._prompt(chat.voices[0], "next")
        assert len(ids) <= chat.ring.context - 20
        assert chat.ring.base.renderer.decode(ids).startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user")
        assert f"number {turn}" in chat.ring.base.renderer.decode(ids) or left == turn + 1
    assert dropped == chat.voices[0].left > 0
    assert len(chat.voices[0].turns) == 6  # what is left out of a prompt is still saved
    with pytest.raises(InputError, match="context is 128"):
        chat.ask("word " * 400, lambda voice: print)
    assert len(chat.voices[0].turns) == 6


def test_ctrl_c_keeps_what_was_said(place: Path) -> None:
    chat = opened(place, player="sft", vs="base", temperature=0.0, max_new_tokens=40)
    whole = said(opened(place, player="sft", temperature=0.0, max_new_tokens=40), "one")[0].text
    pieces: list[str] = []

    def stop(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 5:
            raise KeyboardInterrupt

    found = chat.ask("one", lambda voice: stop)
    assert [one.stopped for one in found] == [True, True]
    assert whole.startswith(found[0].text.rstrip("\ufffd"))
    assert len(found[0].text) < len(whole)
    assert chat.voices[0].turns == [("one", found[0].text)]
    assert chat.voices[1].turns == []  # it was not asked
    assert not any(one.stopped for one in said(chat, "two"))


def test_a_seat_is_taken_whole(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = opened(place, player="sft", max_new_tokens=4)
    plain = chat.ring.seat

    def interrupted(*given: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(chat.ring, "seat", interrupted)
    assert said(chat, "one") == [Said("", stopped=True)]
    assert chat.ring.seated == chat.voices[0].player.fingerprint
    assert chat.voices[0].turns == []


# ---------------------------------------------------------------- characters


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), piece_tokenizer()], ids=["bytes", "pieces"])
def test_no_half_character_is_shown(tokenizer: object) -> None:
    text = " A dog é€😀 日本 🏳️‍🌈, then the cat  sat.\n\nEnd"
    ids = tokenizer(text).input_ids  # type: ignore[operator]
    decode: Callable[[list[int]], str] = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)  # type: ignore[attr-defined]  # noqa: E731
    spelling = Spelling(decode)
    pieces = [spelling.add(token) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(not piece for piece in pieces) > 5
    assert "".join([*pieces, spelling.rest()]) == decode(ids)


def test_what_never_becomes_a_character_is_shown_at_the_end() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("€").input_ids[:1]
    spelling = Spelling(tokenizer.decode)
    assert spelling.add(ids[0]) == ""
    assert spelling.rest() == "\ufffd"


# ---------------------------------------------------------------- commands


def test_save_writes_messages_and_never_overwrites(place: Path, tmp_path: Path) -> None:
    chat = opened(place, player="sft", vs="base", max_new_tokens=4)
    file = tmp_path / "talk.jsonl"
    with pytest.raises(InputError, match="nothing was said"):
        obey(chat, f"/save {file}")
    obey(chat, "/system Be brief.")
    answers = [one.text for one in said(chat, "one é")]
    obey(chat, f"/save {file}")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["model"] for row in rows] == ["θ₀ (SFT)", "base"]
    for row, text in zip(rows, answers, strict=True):
        assert [(m["role"], m["content"]) for m in row["messages"]] == [
            ("system", "Be brief."), ("user", "one é"), ("assistant", text),
        ]  # fmt: skip
    before = file.read_bytes()
    with pytest.raises(InputError, match="not overwritten"):
        obey(chat, f"/save {file}")
    assert file.read_bytes() == before
    with pytest.raises(InputError, match="cannot be written"):
        obey(chat, f"/save {tmp_path / 'no' / 'where'}")
    with pytest.raises(InputError, match='did you mean "/reset"'):
        obey(chat, "/rset")


# ---------------------------------------------------------------- pipes


def piped(chat: Chat, text: bytes) -> tuple[str, str]:
    out, notes = io.StringIO(), io.StringIO()
    answer_lines(chat, io.BytesIO(text), out, notes)
    return out.getvalue(), notes.getvalue()


def test_pipes_get_one_answer_per_line(place: Path) -> None:
    chat = opened(place, "text", player="sft", temperature=0.0, max_new_tokens=2)
    out, notes = piped(chat, b"1 and 2:\r\n\n2 and 3:")
    first, second = (said(chat, q)[0].text for q in ("1 and 2:", "2 and 3:"))
    assert out == f"{first}\n\n{second}\n"
    assert notes.splitlines()[0].startswith("note: this model was trained on plain text")


def test_pipes_obey_commands_and_name_two(place: Path) -> None:
    chat = opened(place, player="sft", vs="base", temperature=0.0, max_new_tokens=2)
    out, notes = piped(chat, b"one\n/reset\none\n/quit\nthree\n")
    answers = re.findall(r"(?:θ₀ \(SFT\)|base): ", out)
    assert answers == ["θ₀ (SFT): ", "base: "] * 2
    half = len(out) // 2
    assert out[:half] == out[half:]
    assert "note: forgotten" in notes


def test_pipes_refuse_what_cannot_be_asked(place: Path) -> None:
    chat = opened(place, max_new_tokens=2)
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        piped(chat, b"one\n\xff\xfe\n")
    with pytest.raises(InputError, match="line 1: this has"):
        piped(chat, b"word " * 400)


def call(place: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", MAIN, "chat", *words, "--runs", str(place / "runs")]


def test_a_pipe_through_the_command_line(place: Path) -> None:
    words = ("talk", "--player", "sft", "--temperature", "0", "--max-new-tokens", "5")
    done = subprocess.run(call(place, *words), input=b"one\ntwo\n", capture_output=True, check=True)
    chat = opened(place, player="sft", temperature=0.0, max_new_tokens=5)
    assert done.stdout.decode() == "".join(said(chat, q)[0].text + "\n" for q in ("one", "two"))
    assert b"\x1b" not in done.stdout


# ---------------------------------------------------------------- a terminal


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, command: list[str], columns: int) -> None:
        self.seen = ""
        self.child, self.file = pty.fork()
        if self.child == 0:
            os.environ |= {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24"}
            os.execv(command[0], command)

    def until(self, pattern: str, seconds: float = 60) -> str:
        """What was written up to and with a match; it is not looked at again."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.file], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen!r}"
            try:
                self.seen += os.read(self.file, 65536).decode("utf-8", "replace")
            except OSError:  # the other side is gone
                raise AssertionError(f"no {pattern!r} in {self.seen!r}") from None
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def write(self, text: str) -> None:
        os.write(self.file, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, until it is noticed: CPython's readline notices one between the prompt and its wait only later."""
        for _ in range(10):
            self.write("\x03")
            if select.select([self.file], [], [], 6)[0]:
                return
        raise AssertionError("Ctrl-C is not noticed")

    def status(self) -> int:
        """The exit status; what is still written is read."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            gone, status = os.waitpid(self.child, os.WNOHANG)
            if gone:
                return os.waitstatus_to_exitcode(status)
            if select.select([self.file], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.file, 65536).decode("utf-8", "replace")
                except OSError:
                    continue
        raise AssertionError("it does not end")


@pytest.fixture
def terminal() -> Iterator[Callable[[list[str], int], Terminal]]:
    made: list[Terminal] = []

    def make(command: list[str], columns: int) -> Terminal:
        made.append(Terminal(command, columns))
        return made[-1]

    yield make
    for one in made:
        os.close(one.file)


def test_a_conversation_on_a_terminal(place: Path, tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    words = ("talk", "--player", "sft", "--vs", "base", "--temperature", "0", "--max-new-tokens", "12")
    shell = terminal(call(place, *words), 60)
    assert "/help" in shell.until(r"> ")
    shell.write("one\n")
    shown = shell.until(r"base[^\n]*\r\n[^>]*> ").replace("\r\n", "\n")
    chat = opened(place, player="sft", temperature=0.0, max_new_tokens=12)
    assert said(chat, "one")[0].text.split("\n")[0] in shown
    shell.write("/nonsense\n")
    shell.until("is not a command[^>]*> ")  # what is typed before the prompt may get lost
    shell.write(f"/save {tmp_path / 'a.jsonl'}\n")
    shell.until("saved: [^>]*> ")
    shell.interrupt()
    shell.until("Ctrl-C again quits[^>]*> ")
    shell.write("\x04")
    assert shell.status() == 0
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_ctrl_c_on_a_terminal(place: Path, tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    base = tmp_path / "long"
    save_base(base, "llama", byte_tokenizer(template=CHATML))
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 100000}))
    shell = terminal(call(place, str(base), "--temperature", "0", "--max-new-tokens", "90000"), 100)
    shell.until("> ")
    shell.write("one\n")
    shell.until(r"one\r\n[^\r]")
    shell.write("\x03")
    shell.until("stopped; Ctrl-C again quits")
    shell.until("> ")
    shell.interrupt()
    assert shell.status() == 0
    assert "error" not in shell.seen


def test_columns_show_the_end_of_what_does_not_fit() -> None:
    console = Console(width=40, height=10, file=io.StringIO(), force_terminal=False)
    texts = {"left": "\n".join(f"line {n}" for n in range(20)), "right": "word " * 20}
    console.print(columns(texts, console, 6))
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert shown[0].split() == ["left", "right"]
    assert len(shown) == 6
    assert shown[-1].startswith("line 19")
    console.file = io.StringIO()
    console.print(columns(texts, console))
    whole = console.file.getvalue().splitlines()
    assert len(whole) == 21
    assert all(len(line) <= 40 for line in whole)
    assert sum(line.count("word") for line in whole) == 20


def test_two_answers_stand_side_by_side(place: Path) -> None:
    chat = opened(place, player="sft", vs="base", temperature=0.0, max_new_tokens=3)
    console = Console(width=80, height=30, file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    found = _beside(chat, console, "one")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue().split("\x1b[2K")[-1])  # type: ignore[attr-defined]
    name, *lines = shown.splitlines()
    assert name.split() == ["θ₀", "(SFT)", "base"]
    for column, one in zip((slice(0, 39), slice(41, 80)), found, strict=True):
        mine = [line[column].rstrip() for line in lines]
        assert mine[: len(one.text.splitlines())] == [line.rstrip() for line in printable(one.text).splitlines()]


def test_nothing_here_knows_a_terminal() -> None:
    assert "rich" not in Path(module.__file__).read_text()
