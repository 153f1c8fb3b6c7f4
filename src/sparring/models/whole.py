"""Whole models as players (full fine-tuning): one in memory, its weights replaced in place, snapshots on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparring.errors import ModelError
from sparring.files import readable, write_atomic
from sparring.models.adapters import fingerprint_each
from sparring.models.base import Base

WEIGHTS = "model.safetensors"


def weights_of(model: Any) -> dict[str, Tensor]:
    """All parameters by name, shared ones once; not copied."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def settings_of_model(model: Any) -> dict[str, Any]:
    """What config.json says of a model: taken before training, which turns its cache off."""
    settings: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return {key: value for key, value in settings.items() if key != "_name_or_path"}


def write_whole(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a model as transformers reads it (config.json, model.safetensors), without its tokenizer."""
    on_cpu = {name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, folder / WEIGHTS, metadata={"format": "pt"})
    readable(folder / WEIGHTS)
    settings = {**settings, "dtype": str(next(iter(on_cpu.values())).dtype).removeprefix("torch.")}
    write_atomic(folder / "config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")


def read_whole(folder: Path, model: Any) -> str:
    """Put a snapshot's weights into the model, tensor by tensor; returns the fingerprint of what the file holds.

    Raises ModelError if the file is damaged or another's.
    """
    mine = weights_of(model)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            strange = sorted(set(file.keys()) ^ set(mine))
            if strange:
                raise ModelError(f"{folder / WEIGHTS} is of another model ({strange[0]}); give a player of this base")

            @torch.no_grad()
            def put() -> Iterator[tuple[str, Tensor]]:
                for name in sorted(mine):
                    tensor = file.get_tensor(name)
                    mine[name].copy_(tensor)
                    yield name, tensor

            return fingerprint_each(put())
    except (SafetensorError, OSError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ModelError(f"the weights {folder / WEIGHTS} are missing or damaged ({why}); remove the folder") from error


def restore(base: Base) -> None:
    """Back to the base's own weights, read again from where they came: so no second copy is kept in memory."""
    if base.reload is None:
        raise RuntimeError("this base was not read from a folder, so its weights cannot be read again")
    fresh = base.reload()
    with torch.no_grad():
        for name, weight in weights_of(fresh).items():
            base.model.get_parameter(name).copy_(weight)
