"""Who answers in a chat: players of a run, or a model's folder, with what the user asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.best_of import chooser, chooser_settings
from sparring.browse import another, find_run, is_model, open_model, open_player, read_settings
from sparring.chatting.chat import Chat, Voice
from sparring.config import Config
from sparring.errors import InputError
from sparring.names import player_name
from sparring.report.records import read_run


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
