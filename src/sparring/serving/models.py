"""The files that servers take: whole models, GGUF, written once and kept.

They lie in RUN/serve, or for a model's folder in the user's cache; every file's name holds the fingerprint of the
weights it is made of, and appears when it is whole.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sparring.errors import InputError, ModelError
from sparring.export.gguf import write_gguf
from sparring.export.gguf_adapter import write_gguf_adapter
from sparring.export.merged import merge_run
from sparring.export.places import made
from sparring.files import digest, write_atomic
from sparring.serving.shelf import Model, Shelf

LINKED = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.py")


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
    with made(folder, {"base": shelf.mark}) as partial:
        for pattern in LINKED:
            for file in shelf.base.glob(pattern):
                (partial / file.name).symlink_to(file.resolve())
        tokenizer = shelf.renderer.tokenizer
        if shelf.chat:
            tokenizer.chat_template = shelf.renderer.portable
        tokenizer.save_pretrained(partial)


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
    with made(out, {"base": shelf.mark}) as partial:
        for name, folder in folders.items():
            home = partial / f"models--{name}"
            (home / "refs").mkdir(parents=True)
            (home / "snapshots").mkdir()
            (home / "refs" / "main").write_text(folder.name, encoding="utf-8")
            (home / "snapshots" / folder.name).symlink_to(folder.resolve())
    return out


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
