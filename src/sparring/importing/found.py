"""Where an adapter that was made elsewhere lies, and its base; what is no adapter is refused in one sentence."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from sparring.errors import ModelError
from sparring.models.adapters import CONFIG
from sparring.models.adapters import WEIGHTS as ADAPTER
from sparring.models.player import ABOUT

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FOUR_BITS = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)
_LISTED = 6  # names said at most


@dataclass(frozen=True, slots=True)
class TheirBase:
    """What an adapter says of its base.

    said    as its config names it; empty if it does not
    name    what `model.base` is to be; empty if it is not on this machine
    why     where it was found, or what to do
    """

    said: str
    name: str
    why: str


def find_adapter(given: str) -> Path:
    """The folder of an adapter, given as a folder, or as a hub id that is in the local cache.

    Reads no weights and uses no network. Raises ModelError with what it is instead, and what to do.
    """
    folder = Path(given).expanduser()
    if folder.is_file():
        raise ModelError(_file(folder))
    if not folder.is_dir():
        folder = _cached(given)
    if not (folder / CONFIG).is_file():
        raise ModelError(_no_adapter(folder))
    weights = folder / ADAPTER
    if (folder / ABOUT).exists() and len(_chain(folder)) > 1:
        raise ModelError(
            f"{folder} is a player that stands on others; it is no adapter by itself: start a run from it with "
            f"start={folder}"
        )
    if not weights.is_file():
        raise ModelError(_no_weights(folder))
    with open(weights, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise ModelError(f"{weights} is a pointer of git-lfs, not the weights; fetch them with `git lfs pull`")
    return folder


def read_about(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says; ModelError if it is no adapter's."""
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{folder / CONFIG} cannot be read ({error}); give the folder of a whole adapter") from error
    if isinstance(about, dict) and about.get("peft_type"):
        return about
    if isinstance(about, dict) and "fine_tune_type" in about:
        raise ModelError(
            f"{folder} is an adapter of MLX, whose weights are laid out otherwise than PEFT's; fuse it into its base "
            "there (mlx_lm.fuse), and give the result as model.base"
        )
    raise ModelError(f"{folder / CONFIG} does not say which kind of adapter it is (peft_type); give a whole adapter")


def find_their_base(about: dict[str, Any], folder: Path) -> TheirBase:
    """Where the base that an adapter names is on this machine: `laboratory`, a folder, or the hub's cache."""
    said = str(about.get("base_model_name_or_path") or "")
    if not said:
        return TheirBase("", "", "the adapter does not name its base; give it with --base FOLDER")
    if said == "laboratory":
        return TheirBase(said, said, "embedded")
    for place in (Path(said).expanduser(), folder / said):
        if (place / "config.json").is_file():
            return TheirBase(said, str(place), "a folder here")
    if HUB_ID.fullmatch(said) or "/" not in said:
        if (cached := _snapshot(said, about.get("revision"))) is not None:
            return TheirBase(said, str(cached), "in the hub's cache here")
        return TheirBase(said, "", f"not on this machine; give --base FOLDER{_download(said)}")
    return TheirBase(said, "", "a folder that is not on this machine; give --base FOLDER")


def sixteen_bits(name: str) -> str:
    """The name of the base that a base in 4 bits was made from, by Unsloth's custom; empty if it is none."""
    plain = _FOUR_BITS.sub("", name)
    return plain if plain != name else ""


def _download(said: str) -> str:
    """What else can be given for a hub id: the id itself, which is then downloaded; 16 bits instead of 4."""
    if not HUB_ID.fullmatch(said):
        return ""
    plain = sixteen_bits(said)
    if plain and _snapshot(plain, None) is not None:
        return f"; {plain}, the same in 16 bits, is in the hub's cache here: --base {plain}"
    return f", or --base {plain or said} to have it downloaded" + (" (the same base in 16 bits)" if plain else "")


def _snapshot(name: str, revision: Any) -> Path | None:
    """The folder of a model in the hub's cache, if its weights are there too."""
    if not HUB_ID.fullmatch(name):
        return None
    found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder and any(folder.glob("*.safetensors")) else None


def _cached(given: str) -> Path:
    """The folder of an adapter in the hub's cache; ModelError if there is none, or if the path is wrong."""
    if not HUB_ID.fullmatch(given) or Path(given).parent.is_dir():
        raise ModelError(f"{given} does not exist; give the folder of an adapter ({CONFIG}, {ADAPTER})")
    found = try_to_load_from_cache(given, CONFIG)
    if isinstance(found, str):
        return Path(found).parent
    raise ModelError(
        f"{given} is not a folder here, and nothing is downloaded without being asked; if it is a hub id, fetch it "
        f"with `hf download {given}`, then give it again"
    )


def _file(file: Path) -> str:
    with open(file, "rb") as opened:
        magic = opened.read(4)
    if magic == b"GGUF" or file.suffix == ".gguf":
        return f"{file} is a GGUF file, which llama.cpp reads; give the PEFT adapter that it was made from"
    if file.name in (CONFIG, ADAPTER):
        return f"{file} is a file of an adapter; give its folder, {file.parent}"
    if file.suffix in PICKLED:
        return f"{file} is pickled, and can run code when it is loaded; {_convert(file.parent)}"
    return f"{file} is a file; give the folder of an adapter ({CONFIG}, {ADAPTER})"


def _convert(folder: Path) -> str:
    return (
        f"if you trust it, load it with PEFT and save it again (save_pretrained writes {ADAPTER}), then give that "
        f"instead of {folder}"
    )


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED and "adapter" in path.name)
    if pickled:
        return (
            f"{folder} has pickled weights ({pickled[0]}), which are not loaded: they can run code; {_convert(folder)}"
        )
    return f"{folder} has {CONFIG} but no weights ({ADAPTER}); give the folder of a whole adapter"


def _no_adapter(folder: Path) -> str:
    """What a folder without adapter_config.json is, and what to give instead."""
    below = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    checkpoints = sorted((path for path in below if _step(path) >= 0), key=_step)
    if (folder / "run.lock.yaml").exists():
        return f"{folder} is a run, whose players need no import; every verb takes the run itself"
    if checkpoints:
        best = _best(checkpoints[-1])
        hint = f"; its Trainer found {best} best" if best else ""
        return f"{folder} holds no adapter but checkpoints ({_names(checkpoints)}); give one: {checkpoints[-1]}{hint}"
    if below:
        several = "several adapters" if len(below) > 1 else "an adapter"
        return f"{folder} holds {several} in folders of their own ({_names(below)}); give one: {below[0]}"
    if any(folder.glob("*.gguf")):
        return f"{folder} holds a GGUF file, which llama.cpp reads; give the PEFT adapter that it was made from"
    if (folder / ADAPTER).exists():
        return f"{folder} has weights but no {CONFIG}, without which they are numbers; copy it there"
    if (folder / "config.json").exists():
        return f"{folder} is a whole model, not an adapter; give it as model.base, or talk to it with sparring chat"
    if any(path.suffix in PICKLED for path in folder.iterdir()):
        return f"{folder} has pickled weights and no {CONFIG}; {_convert(folder)}"
    return f"{folder} holds no adapter ({CONFIG}); give the folder of one"


def _names(folders: list[Path]) -> str:
    said = [folder.name for folder in folders]
    return ", ".join(said if len(said) <= _LISTED else [*said[: _LISTED - 1], "…", said[-1]])


def _step(folder: Path) -> int:
    """N of checkpoint-N; -1 for any other name."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else -1


def _best(checkpoint: Path) -> str:
    """The checkpoint that a Trainer remembers as its best; empty if it chose none."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return Path(str(state.get("best_model_checkpoint") or "")).name
    except (OSError, ValueError, AttributeError):
        return ""


def _chain(folder: Path) -> list[Any]:
    """What a player of ours stands on; a damaged record is told of when the player is read."""
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["chain"]
    except (ValueError, KeyError, TypeError):
        return []
    return found if isinstance(found, list) else []
