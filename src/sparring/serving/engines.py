"""The servers that a run can be handed to: which is there, which takes the run's players, and its command line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from sparring.errors import InputError
from sparring.export.card_use import RANKS
from sparring.files import digest, write_atomic
from sparring.serving.guard import KEY
from sparring.serving.models import gguf, hub, size, weights
from sparring.serving.shelf import Model, Shelf

TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
WEB = ("fastapi", "uvicorn")
PARTS = {
    "transformers": (*WEB, "openai"),
    "llama.cpp": ("llama_cpp", "gguf", *WEB, "sse_starlette", "starlette_context", "pydantic_settings"),
}
INSTALL = {
    "transformers": "pip install 'sparring[serve]'",
    "llama.cpp": "pip install 'sparring[gguf]' 'llama-cpp-python[server]'",
    "vllm": "pip install vllm",
}


@dataclass(frozen=True, slots=True)
class Command:
    """What is started: words, what is added to the environment (None: taken out of it), where a key is looked for."""

    words: list[str]
    env: dict[str, str | None] = field(default_factory=dict)
    key: str = KEY


@dataclass(frozen=True, slots=True)
class Engine:
    """A server that exists.

    fits     (shelf) → why it cannot take what is on it; empty: it can
    writes   (shelf) → (a sentence on what is written first, or empty; how many whole models that are)
    command  (shelf, host, port) → how it is started; writes what it needs
    why      what it is chosen for
    """

    name: str
    fits: Callable[[Shelf], str]
    writes: Callable[[Shelf], tuple[str, int]]
    command: Callable[[Shelf, str, int], Command]
    why: str


def installed(name: str) -> bool:
    """Whether a server is here."""
    if name == "vllm":
        return find_spec("vllm") is not None or shutil.which("vllm") is not None
    whole = all(find_spec(part) is not None for part in PARTS[name])
    return whole or (name == "llama.cpp" and shutil.which("llama-server") is not None and find_spec("gguf") is not None)


def choose(shelf: Shelf, asked: str) -> tuple[Engine, str]:
    """(the server, why it). asked: its name, or auto. Raises InputError where none is installed, or none fits."""
    if asked != "auto":
        engine = ENGINES[asked]
        if wrong := engine.fits(shelf):
            raise InputError(f"{asked}: {wrong}")
        if not installed(asked):
            raise InputError(f"{engine.name} is not installed, or not whole; install with: {INSTALL[asked]}")
        return engine, "it was asked for"
    refused = {name: engine.fits(shelf) for name, engine in ENGINES.items()}
    fit = [name for name, wrong in refused.items() if not wrong]
    if not fit:
        raise InputError("; ".join(dict.fromkeys(refused.values())) + "; talk with it by `sparring chat`")
    there = [name for name in fit if installed(name)]
    if not there:
        raise InputError(f"no server is installed that takes this run; install with: {INSTALL[_easiest(fit)]}")
    return ENGINES[there[0]], ENGINES[there[0]].why


def _easiest(fit: list[str]) -> str:
    return "transformers" if "transformers" in fit else fit[0]


def _unmerged(shelf: Shelf) -> str:
    """Why players cannot be written merged; empty if they can, or if none is asked for."""
    if not shelf.players or shelf.row.merges or shelf.row.whole:
        return ""
    return (
        f"a player of method {shelf.row.name} is no change of the base's weights, and no server takes it; only "
        "--player base can be served"
    )


def _merged(shelf: Shelf, players: int) -> tuple[str, int]:
    if not players:
        return "", 0
    said = f"{players} {'player is' if players == 1 else 'players are'} merged into the base and measured"
    return f"{said}: {size(players * shelf.bytes)} in {shelf.place}, kept for the next time", players


def _facts(shelf: Shelf, place: Path, host: str, **defaults: object) -> Path:
    """The file that tells the guard what is served."""
    names = [model.name for model in shelf.models]
    content = {"models": names, "context": shelf.context, "place": str(place), "host": host, "defaults": defaults}
    content |= {"chats": shelf.chat}
    return _file(shelf, "facts", content)


def _file(shelf: Shelf, name: str, content: dict[str, object]) -> Path:
    path = shelf.place / f"{name}-{digest(content)}.json"
    if shelf.told:
        write_atomic(path, json.dumps(content, indent=2) + "\n")
    return path


def _guarded(facts: Path, server: str) -> list[str]:
    return [sys.executable, "-m", "sparring.serving.behind", str(facts), server]


# ---------------------------------------------------------------- transformers


def _transformers_writes(shelf: Shelf) -> tuple[str, int]:
    missing = sum(not shelf.folder(model).exists() for model in shelf.players.values())
    return _merged(shelf, missing)


def _transformers(shelf: Shelf, host: str, port: int) -> Command:
    words = _guarded(_facts(shelf, hub(shelf), host), "transformers")
    words += ["serve", "--host", host, "--port", str(port), "--device", shelf.device, "--dtype", TORCH[shelf.dtype]]
    words += ["--log-level", "error"]
    return Command([*words, *(["--trust-remote-code"] if shelf.config.model.trust_remote_code else [])])


# ---------------------------------------------------------------- llama.cpp


def _llama_fits(shelf: Shelf) -> str:
    if wrong := _unmerged(shelf):
        return wrong
    if shelf.players and shelf.row.gguf == "no":
        return f"llama.cpp does not take players of method {shelf.row.name}; give --engine transformers"
    alone = find_spec("llama_cpp") is None and shutil.which("llama-server") is not None
    if alone and len(shelf.models) > 1:
        return "llama-server serves one model at a time; name it with --player, or install llama-cpp-python"
    return ""


def _llama_writes(shelf: Shelf) -> tuple[str, int]:
    lone = shelf.row.gguf == "adapter" and all(len(model.chain) == 1 for model in shelf.players.values())
    count = 1 if lone else len(shelf.players) * 2
    return f"GGUF files in 16 bits are written: about {size(count * shelf.bytes)} in {shelf.place}", count


def _llama(shelf: Shelf, host: str, port: int) -> Command:
    files = {model.name: gguf(shelf, model) for model in shelf.models}
    if find_spec("llama_cpp") is None:
        (name, (file, lora)), *_ = files.items()
        words = ["llama-server", "-m", str(file), "--alias", name, "-c", str(shelf.context)]
        words += ["--lora", str(lora)] if lora else []
        return Command([*words, "--host", host, "--port", str(port)], key="LLAMA_API_KEY")
    models = [
        {
            "model": str(file), "model_alias": name, "lora_path": lora and str(lora), "n_ctx": shelf.context,
            "n_gpu_layers": -1, "logits_all": False, "verbose": False,
        }
        for name, (file, lora) in files.items()
    ]  # fmt: skip
    config = _file(shelf, "llama", {"host": host, "port": port, "models": models})
    # what llama-cpp-python would take in their place is none of it the player's: 0.8, 0.95, 40, 0.05, 1.1
    neutral = {"temperature": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
    facts = _facts(shelf, shelf.place, host, **neutral, top_p=shelf.config.generation.top_p)
    env: dict[str, str | None] = {"HOST": host, "PORT": str(port), "CONFIG_FILE": None}
    return Command([*_guarded(facts, "llama_cpp.server"), "--config_file", str(config)], env)


# ---------------------------------------------------------------- vLLM


def _vllm_fits(shelf: Shelf) -> str:
    if wrong := _unmerged(shelf):
        return wrong
    players = shelf.players
    if not players or (len(shelf.models) == 1 and shelf.row.vllm != "no"):
        return ""
    if shelf.row.vllm == "no":
        return f"vLLM does not take players of method {shelf.row.name}; give --engine transformers"
    if not _as_adapters(shelf):
        return "vLLM takes these players only merged, one at a time; name one with --player"
    return ""


def _as_adapters(shelf: Shelf) -> bool:
    """Whether vLLM takes the players as they are: one LoRA each, of a rank that it knows, and nothing beside it."""
    plain = shelf.row.vllm == "adapter" and not shelf.config.method.beside
    return plain and all(len(m.chain) == 1 and 0 < _rank(m) <= max(RANKS) for m in shelf.players.values())


def _rank(model: Model) -> int:
    """The largest rank of an adapter on disk."""
    about = json.loads((model.chain[-1] / "adapter_config.json").read_text(encoding="utf-8"))
    ranks: list[int] = [about.get("r") or 0, *(about.get("rank_pattern") or {}).values()]
    return max(ranks)


def _vllm_writes(shelf: Shelf) -> tuple[str, int]:
    return ("", 0) if _as_adapters(shelf) else _transformers_writes(shelf)


def _vllm(shelf: Shelf, host: str, port: int) -> Command:
    loras = shelf.players and _as_adapters(shelf)
    base = Model("base", "base", (), "")
    lone = shelf.models[0]
    folder, name = (weights(shelf, base), "base") if loras else (weights(shelf, lone), lone.name)
    words = ["vllm", "serve", str(folder), "--served-model-name", name, "--dtype", TORCH[shelf.dtype]]
    if not shelf.players and len(shelf.models) > 1:
        words[4:5] = [model.name for model in shelf.models]
    if loras:
        adapters = [model for model in shelf.models if model.chain]
        rank = next(rank for rank in RANKS if rank >= max(_rank(model) for model in adapters))
        words += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(min(len(adapters), 8))]
        words += ["--max-cpu-loras", str(len(adapters))]
        words += ["--lora-modules", *(f"{model.name}={model.chain[-1]}" for model in adapters)]
    words += ["--trust-remote-code"] if shelf.config.model.trust_remote_code else []
    env: dict[str, str | None] = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    return Command([*words, "--host", host, "--port", str(port)], env, "VLLM_API_KEY")


ENGINES = {
    "vllm": Engine(
        "vLLM", _vllm_fits, _vllm_writes, _vllm, "it is installed, and takes the players as they are"
    ),
    "transformers": Engine(
        "transformers serve", _unmerged, _transformers_writes, _transformers,
        "it takes every player that can be merged into its base",
    ),
    "llama.cpp": Engine(
        "llama.cpp's server", _llama_fits, _llama_writes, _llama, "it is the one that is installed"
    ),
}  # fmt: skip
