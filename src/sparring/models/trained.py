"""What is being trained, in a file: of a checkpoint, or of a step that may be gone back to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from sparring.files import written
from sparring.models.players import Ring


def write_trained(path: Path, ring: Ring, about: Mapping[str, str] | None = None) -> None:
    """The challenger's weights, whole or not at all. about: texts that the file holds beside them."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in ring.trainable().items()}
    with written(path) as file:
        file.write(save(tensors, dict(about) if about else None))


def read_trained(path: Path, ring: Ring) -> None:
    """Put weights that `write_trained` wrote into the challenger."""
    saved = load_file(path)
    with torch.no_grad():
        for name, parameter in ring.trainable().items():
            parameter.copy_(saved[name])


def about_trained(path: Path) -> dict[str, str]:
    """The texts beside the weights."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
