"""What a user may say to a chat itself, in lines that begin with a slash; and the file of what was said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparring.chatting.chat import Chat, as_messages
from sparring.data.messages import Message
from sparring.errors import InputError, nearest

COMMANDS = {
    "/reset": "forget what was said",
    "/system": "TEXT: what the model is told first; without a text, nothing",
    "/save": "FILE: write the conversation as JSON lines, one per model",
    "/help": "these lines",
    "/quit": "leave, as Ctrl-D does",
}


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
            messages = [{"role": m.role, "content": m.content} for m in [*opening, *as_messages(voice.turns)]]
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
