"""What of a run can be served, and the files that servers take: whole models, GGUF, written once and kept.

They lie in RUN/serve, or for a model's folder in the user's cache; every file's name holds the fingerprint of the
weights it is made of, and appears when it is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
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
from sparring.export.gguf import write_gguf
from sparring.export.gguf_adapter import write_gguf_adapter
from sparring.export.merged import merge_run
from sparring.files import digest, remove, write_atomic
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
LINKED = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.py")


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


# ---------------------------------------------------------------- what there is


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


# ---------------------------------------------------------------- whole models


def weights(shelf: Shelf, model: Model) -> Path:
    """The folder of a whole model, written if it is not there: the base as links, a player merged into it."""
    folder = shelf.folder(model)
    if shelf.told is None:
        return folder
    if not (folder.exists() or model.chain):
        _link_base(shelf, folder)
    if not folder.exists():
        if shelf.run is None:  # a model's folder has no players
            raise InputError(f"there is no player {model.player}")
        shelf.told(f"merging {model.player} into its base")
        merge_run(shelf.run, folder, model.player, shelf.dtype, within=True)
    write_atomic(folder / "generation_config.json", json.dumps(_sampling(shelf), indent=2) + "\n")
    return folder


def _link_base(shelf: Shelf, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    remove(partial)
    partial.mkdir()
    for pattern in LINKED:
        for file in shelf.base.glob(pattern):
            (partial / file.name).symlink_to(file.resolve())
    tokenizer = shelf.renderer.tokenizer
    if shelf.chat:
        tokenizer.chat_template = shelf.renderer.portable
    tokenizer.save_pretrained(partial)
    os.rename(partial, folder)


def _sampling(shelf: Shelf) -> dict[str, Any]:
    """How servers answer where a question does not say: as the run's players, at temperature 1."""
    ends, pad = list(shelf.renderer.end_ids), shelf.renderer.tokenizer.pad_token_id
    return {
        "do_sample": True, "temperature": 1.0, "top_p": shelf.config.generation.top_p, "top_k": 0,
        "eos_token_id": ends, "pad_token_id": ends[0] if pad is None else pad,
        "bos_token_id": shelf.renderer.tokenizer.bos_token_id,
    }  # fmt: skip


def hub(shelf: Shelf) -> Path:
    """A cache as the hub's own library keeps it, which holds what is served and nothing else."""
    folders = {model.name: weights(shelf, model) for model in shelf.models}
    out = shelf.place / f"hub-{digest(sorted((name, path.name) for name, path in folders.items()))}"
    if out.exists() or shelf.told is None:
        return out
    partial = out.with_name(out.name + ".partial")
    remove(partial)
    for name, folder in folders.items():
        home = partial / f"models--{name}"
        (home / "refs").mkdir(parents=True)
        (home / "snapshots").mkdir()
        (home / "refs" / "main").write_text(folder.name, encoding="utf-8")
        (home / "snapshots" / folder.name).symlink_to(folder.resolve())
    os.rename(partial, out)
    return out


# ---------------------------------------------------------------- GGUF


def gguf(shelf: Shelf, model: Model) -> tuple[Path, Path | None]:
    """(model, LoRA or None) as GGUF in 16 bits, written if they are not there.

    Players of methods that llama.cpp knows as LoRA share the base's file; others have a file of their own.
    """
    if model.chain and shelf.row.gguf == "adapter" and len(model.chain) == 1:
        lora = shelf.place / f"{model.player}-{shelf.key(model.mark)}.lora.gguf"
        base = Model("base", "base", (), "")
        try:
            if shelf.told and not lora.exists():
                shelf.told(f"writing {model.player} as a GGUF adapter")
                write_gguf_adapter(model.chain[0], weights(shelf, base), lora)
            return gguf(shelf, base)[0], lora
        except ModelError:  # more than a LoRA on matrices: a file of its own
            lora.unlink(missing_ok=True)
    out = shelf.place / f"{model.player}-{shelf.key(model.mark)}-f16.gguf"
    if shelf.told and not out.exists():
        folder = weights(shelf, model)
        shelf.told(f"writing {model.player} as GGUF")
        write_gguf(folder, out, "f16")
    return out, None


def needed(shelf: Shelf, count: int) -> None:
    """Raise InputError if there is no room for so many whole models."""
    place = next(folder for folder in (shelf.place, *shelf.place.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if count * shelf.bytes > free:
        raise InputError(
            f"{count} whole models need {size(count * shelf.bytes)} in {shelf.place}, where {size(free)} are free; "
            "make room, or name fewer with --player"
        )


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(count / 2**20, 0.1):.1f} MiB"
