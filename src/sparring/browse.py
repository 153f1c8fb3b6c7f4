"""Looking at finished and unfinished runs: which there are, and what their players say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sparring.errors import InputError, RunError, nearest
from sparring.names import player_folder

if TYPE_CHECKING:
    from sparring.config import Config
    from sparring.data.messages import Renderer
    from sparring.models.players import Player, Ring


def list_runs(folder: Path) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the runs in a folder, oldest first."""
    header = ["run", "state", "base", "data", "best", "chosen by", "held out"]
    return header, [_row(lock.parent) for lock in _locks(folder)]


def _locks(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/run.lock.yaml"), key=lambda path: path.stat().st_mtime)


def _row(run: Path) -> list[str]:
    lock = _lock(run)
    if lock is None:
        return [run.name, "damaged: run.lock.yaml", "", "", "", "", ""]
    best = run / "best" / "best.json"
    name = [
        run.name,
        "finished" if best.exists() else "unfinished",
        str(lock["base"]["name"]),
        str(lock["data"]["train"]),
    ]
    scores = run / "reward-scores" / "scores.json"
    if scores.exists():
        right = json.loads(scores.read_text(encoding="utf-8"))["accuracy"]["mean"]
        return [name[0], "finished", *name[2:], "reward model", "–", f"{right:.4f} right"]
    if not best.exists():
        return [*name, "", "", ""]
    chosen = json.loads(best.read_text(encoding="utf-8"))
    value = chosen["values"][chosen["player"]]
    by = {"nll": "NLL", "exact_kl": "exact KL"}.get(chosen.get("metric", "nll"), chosen.get("metric"))
    return [*name, chosen["label"], by, "–" if value is None else f"{value:.4f}"]


def _lock(run: Path) -> dict[str, Any] | None:
    """The content of run.lock.yaml; None if it is damaged."""
    try:
        lock = yaml.safe_load((run / "run.lock.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    whole = isinstance(lock, dict) and {"base", "data", "config"} <= set(lock)
    return lock if whole else None


def find_run(which: str, folder: Path) -> Path:
    """A run's folder from its path, its name, or `last`. Raises RunError naming the nearest."""
    locks = _locks(folder)
    if which == "last":
        if not locks:
            raise RunError(f"there is no run in {folder}; `sparring run` makes one, --runs names another folder")
        begun = [lock for lock in locks if any((lock.parent / name).exists() for name in ("sft", "reward"))]
        return (begun or locks)[-1].parent
    for place in (Path(which), folder / which):
        if (place / "run.lock.yaml").exists():
            return place
    for place in (Path(which), folder / which, folder / f"{which}.compare"):
        if (place / "study.lock.yaml").exists():
            raise RunError(f"{place} is a study; give one of its runs, such as {place}/arms/sft/seed-0")
    if (Path(which) / "adapter_config.json").is_file():
        raise RunError(f"{which} is an adapter, and no run: `sparring import {which} --data FILE` makes it one")
    known = [lock.parent.name for lock in locks]
    hint = nearest(which, known) if known else f"there is no run in {folder}"
    raise RunError(f'there is no run "{which}"; {hint}')


@dataclass(frozen=True, slots=True)
class Opened:
    """A player of a run, loaded and ready to be seated."""

    config: Config
    ring: Ring
    player: Player
    chat: bool


def open_player(run: Path, player: str) -> Opened:
    """Load the base of a run, and one of its players: best, base, sft, or an iteration's number.

    Raises RunError for a damaged run, an unknown player, or another base than the run was made with.
    """
    settings = read_settings(run)
    folder = player_folder(run, player)

    from sparring.config import Config
    from sparring.job import quiet_libraries
    from sparring.models.base import find_base, load_base, load_renderer
    from sparring.models.players import Player, Ring

    quiet_libraries()
    config = Config.model_validate(settings)
    base_folder = find_base(config.model)
    renderer = load_renderer(base_folder, config.model)
    ring = Ring(load_base(base_folder, config.model, renderer), config.method, config.model.base)
    seated = Player.load(folder) if folder else Player.untrained(ring.base)
    lock = _lock(run) or {}
    _same_template(lock, renderer, config.model.template)
    made_with = lock["base"]["fingerprint"]
    if folder is None and ring.base.fingerprint != made_with:
        raise RunError(f"the base at {config.model.base} is not the one this run was made with; restore it")
    return Opened(config, ring, seated, _chats(run))


def _same_template(lock: dict[str, Any], renderer: Renderer, given: str) -> None:
    """Raise RunError if chats would be written in another way than when the run was made."""
    from sparring.files import digest

    known = (lock.get("same") or {}).get("template fingerprint")
    if known is not None and known != digest([renderer.template, renderer.end_ids]):
        where = "that the base's tokenizer brings" if given == "auto" else f"model.template {given}"
        raise RunError(f"the chat template {where} is not the one this run was made with any more; restore it")


def another(run: Path, player: str, ring: Ring) -> Player:
    """Another player of the run whose base is on the ring; raises RunError for an unknown one."""
    from sparring.models.players import Player

    folder = player_folder(run, player)
    return Player.load(folder) if folder else Player.untrained(ring.base)


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model that no run made."""
    return (folder / "config.json").is_file() and not (folder / "run.lock.yaml").exists()


def open_model(folder: Path) -> Opened:
    """Load a model's folder in Hugging Face layout, as a player that is its own base.

    It chats if its tokenizer brings a template. Raises ModelError where transformers cannot load it.
    """
    from sparring.config import Config, ModelConfig
    from sparring.job import quiet_libraries
    from sparring.models.base import find_base, load_base, load_renderer
    from sparring.models.players import Player, Ring

    quiet_libraries()
    config = Config(model=ModelConfig(base=str(folder)))
    place = find_base(config.model)
    renderer = load_renderer(place, config.model)
    ring = Ring(load_base(place, config.model, renderer), config.method, config.model.base)
    return Opened(config, ring, Player.untrained(ring.base), bool(renderer.tokenizer.chat_template))


def read_settings(run: Path) -> dict[str, Any]:
    """The resolved config that a run was made with; RunError if its record is damaged."""
    lock = _lock(run)
    if lock is None:
        raise RunError(
            f"{run / 'run.lock.yaml'} is damaged, so it is not known what this run was made with; restore it"
        )
    settings: dict[str, Any] = lock["config"]
    return settings


def answer(
    run: Path, prompt: str, player: str, count: int, seed: int, temperature: float, max_new_tokens: int,
    best_of: int = 1, scorer: str | None = None, told: Callable[[str], None] | None = None,
) -> list[str]:  # fmt: skip
    """Answers of one player of a run. `player`: best, base, sft, or an iteration's number.

    best_of  of so many each is the best, by the run's scorer or the reward model in the folder `scorer`
    told     called with what choosing did, once for each answer
    """
    if not prompt.strip():
        raise InputError("the prompt is empty; give some text, or - to read standard input")

    from sparring.best_of import choose_best, chooser, chooser_settings, said_of_choice
    from sparring.config import Config
    from sparring.data.messages import Message
    from sparring.generation.local import LocalGenerator
    from sparring.generation.sampling import stream_keys

    chooser_settings(Config.model_validate(read_settings(run)), scorer, best_of)  # what is wrong is said at once
    opened = open_player(run, player)
    config, ring = opened.config, opened.ring
    renderer = ring.base.renderer
    system = (Message("system", config.data.system),) if opened.chat and config.data.system else ()
    ids = renderer.prompt((*system, Message("user", prompt)), chat=opened.chat)
    if len(ids) >= ring.context:
        raise InputError(
            f"the prompt has {len(ids)} tokens, but the model's context is {ring.context}; shorten the prompt"
        )
    settings = config.generation.model_copy(update={"temperature": temperature})
    generator = LocalGenerator(ring.seat(opened.player, settings.merge), ring.base, settings)
    total = count * best_of
    keys = stream_keys(seed, 0, [0] * total, list(range(total)))
    given = [one.ids for one in generator([ids] * total, keys, max_new_tokens)]
    judge = chooser(config, ring, scorer, best_of)
    if judge is None:
        return [renderer.decode(one) for one in given]
    chosen = []
    for start in range(0, total, best_of):
        place, scores = choose_best(judge, ids, given[start : start + best_of])
        chosen.append(renderer.decode(given[start + place]))
        if told is not None:
            told(said_of_choice(judge, scores))
    return chosen


def _chats(run: Path) -> bool:
    """Whether the run's data were chats, so that a prompt is asked with the template."""
    facts: dict[str, Any] = json.loads((run / "data" / "phase.json").read_text(encoding="utf-8"))["facts"]
    return bool(facts["chat"])
