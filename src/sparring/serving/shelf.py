"""What of a run can be served, or of a model's folder. No weights are loaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from sparring.browse import find_run, is_model, read_settings
from sparring.config import Config, ModelConfig
from sparring.data.messages import Renderer
from sparring.errors import InputError, ModelError, RunError
from sparring.files import digest
from sparring.methods import Method, method_of
from sparring.models.base import (
    DTYPES,
    choose_device,
    context_of,
    find_base,
    fingerprint_folder,
    load_renderer,
    read_config,
)
from sparring.models.player import Player
from sparring.names import player_name

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, slots=True)
class Model:
    """What can be asked for.

    name    in a question
    player  what the run calls it
    chain   its adapters, oldest first; empty: the base itself
    mark    fingerprint of its adapters
    """

    name: str
    player: str
    chain: tuple[Path, ...]
    mark: str


@dataclass(frozen=True, slots=True)
class Shelf:
    """All that is served of one run, or one model's folder (then `run` is None).

    base   the base's folder; mark: the fingerprint of what is in it
    place  where files are written
    dtype  that the run computes in here: fp32, bf16 or fp16
    notes  what the user should know, a sentence each
    told   called with what is being written; None: nothing is, and where it would be is all that is said
    """

    run: Path | None
    base: Path
    mark: str
    place: Path
    config: Config
    renderer: Renderer
    chat: bool
    dtype: str
    context: int
    models: list[Model]
    notes: list[str]
    told: Callable[[str], None] | None = None

    @property
    def row(self) -> Method:
        """The run's method."""
        return method_of(self.config.method)

    @property
    def players(self) -> dict[str, Model]:
        """Those that are more than the base: player → model, each once."""
        return {model.player: model for model in self.models if model.chain}

    @property
    def bytes(self) -> int:
        """Of one whole model's weights."""
        total = 0
        for path in self.base.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                total += sum(_product(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        return total * BYTES[self.dtype]

    @property
    def device(self) -> str:
        """cuda or cpu: where the run would compute."""
        return choose_device(self.config.model)[0].type

    def folder(self, model: Model) -> Path:
        """Where a whole model is, or will be."""
        return self.place / f"{model.player}-{self.key(model.mark)}"

    def key(self, *more: Any) -> str:
        """Changes with anything that is written into the files."""
        asked = [self.renderer.portable if self.chat else "", self.renderer.end_ids, self.dtype, self.context]
        return digest([*asked, self.config.generation.top_p, str(self.base.resolve()), self.mark, *more])


def _product(size: list[int]) -> int:
    total = 1
    for part in size:
        total *= part
    return total


def open_shelf(which: str, runs: Path, names: list[str]) -> Shelf:
    """What `which` has, or those players of it that are named. No weights are loaded.

    Raises InputError for an unknown player, RunError for a run that has none yet.
    """
    folder = Path(which).expanduser()
    if is_model(folder):
        if set(names) - {"base", "best"}:
            raise InputError(f"{folder} is a model's folder, which has no other players; leave --player out")
        return _folder(folder.resolve())
    run = find_run(which, runs)
    if not (run / "data" / "phase.json").exists():
        raise RunError(f"{run} has only begun, and has no players; go on with it, or serve its base's folder")
    config = Config.model_validate(read_settings(run))
    wanted, notes = names or _there(run), list[str]()
    models = []
    for name in dict.fromkeys(wanted):
        try:
            models.append(_model(run, name))
        except ModelError as error:
            if names:
                raise
            notes.append(f"{name} is left out: {error}")
    chat = bool(json.loads((run / "data" / "phase.json").read_text(encoding="utf-8"))["facts"]["chat"])
    notes += _notes(run, config, chat)
    shelf = _shelf(run, find_base(config.model), run.resolve() / "serve", config, chat, models, notes)
    if config.model.quantise == "none" and shelf.mark != _made_with(run):
        raise RunError(f"the base at {config.model.base} is not the one this run was made with; restore it")
    return shelf


def _notes(run: Path, config: Config, chat: bool) -> list[str]:
    notes = []
    if not (run / "best" / "best.json").exists():
        notes.append("the run is not finished, so there is no `best`")
    if config.model.quantise != "none":
        notes.append(f"the run held its base in {config.model.quantise}; whole, it answers a little differently")
    if config.data.system and chat:
        notes.append(f"the run's chats open with a system text, which a client must send: {config.data.system!r}")
    return notes


def _made_with(run: Path) -> str:
    lock = yaml.safe_load((run / "run.lock.yaml").read_text(encoding="utf-8"))
    return str(lock["base"]["fingerprint"])


def _there(run: Path) -> list[str]:
    """base, sft, 0, 1, …, best: all that a run has."""
    steps = sorted((p.parent.parent.name for p in run.glob("*/player/player.json")), key=lambda name: (len(name), name))
    sft = ["sft"] if (run / "sft" / "player.json").exists() else []
    return ["base", *sft, *steps, *(["best"] if (run / "best" / "best.json").exists() else [])]


def _model(run: Path, name: str) -> Model:
    player = player_name(run, name)
    if player == "base":
        return Model(name, "base", (), "")
    loaded = Player.load(run / "sft" if player == "sft" else run / player / "player")
    return Model(name, player if loaded.adapters else "base", loaded.adapters, loaded.fingerprint)


def _folder(folder: Path) -> Shelf:
    config = Config(model=ModelConfig(base=str(folder)))
    name = re.sub(r"[^A-Za-z0-9_]+", "-", folder.name).strip("-") or "model"  # what a model may be called in a cache
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "sparring" / "serve" / f"{name}-{digest(str(folder))}"
    return _shelf(None, find_base(config.model), place, config, None, [Model(name, "base", (), "")], [])


def _shelf(
    run: Path | None, base: Path, place: Path, config: Config, chat: bool | None, models: list[Model], notes: list[str]
) -> Shelf:
    """chat: None: if the base's tokenizer has a template."""
    dtype = next(name for name, value in DTYPES.items() if value == choose_device(config.model)[1])
    renderer = load_renderer(base, config.model)
    chats = bool(renderer.tokenizer.chat_template) if chat is None else chat
    context, mark = context_of(read_config(base, config.model)), fingerprint_folder(base)
    return Shelf(run, base, mark, place, config, renderer, chats, dtype, context, models, notes)
