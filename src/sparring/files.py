"""Files that a kill cannot break: whole or not there, and what is left half done has a name that says so."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparring.errors import RunError


def digest(value: Any) -> str:
    """sha256 of a JSON value, in 16 hex digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_file(path: Path) -> str:
    """sha256 of a file's bytes, in 16 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_json(path: Path) -> Any:
    """A JSON file that this project wrote; RunError if someone has damaged it since."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); remove {path.parent} to make it again") from None


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, finds the old text or the new, never a part."""
    with written(path) as file:
        file.write(text.encode())


@contextmanager
def written(path: Path) -> Iterator[Any]:
    """A binary file that appears under `path` only when it is whole; a kill leaves but a `.tmp` behind."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove(folder: Path) -> None:
    """Delete a folder such that a kill half-way never leaves a part under its own name, but a `.doomed`."""
    if folder.exists():
        doomed = folder.with_name(folder.name + ".doomed")
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Delete what only a kill leaves behind: `.tmp` files and `.doomed` folders."""
    for doomed in [*folder.rglob("*.doomed")]:
        shutil.rmtree(doomed)
    for temporary in [*folder.rglob("*.tmp")]:
        temporary.unlink()


def readable(path: Path) -> None:
    """Give a file the rights that new files have here: safetensors keeps its own to their owner."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
