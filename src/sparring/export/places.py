"""Where exports go: nothing of the user's is in danger, one export at a time, and no half under a finished name.

An export is known by a file that says so (`MARK`). Only what has it is ever replaced, or cleared away after a kill.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sparring.errors import InputError
from sparring.files import write_atomic

MARK = "sparring.json"
PARTIAL, DOOMED, UNVERIFIED = ".partial", ".doomed", ".unverified"


def free(out: Path, force: bool, base: Path | None = None, within: bool = False) -> None:
    """Refuse a place that is taken, before anything is loaded.

    base    the base's folder, which is never replaced
    within  a place in a run's folder that is meant for it
    """
    if out.is_symlink():
        raise InputError(f"{out} is a link; give the folder that it leads to, or another --out")
    whole = out.resolve()
    if not whole.name:
        raise InputError(f"{out} is the root of the disk; give another --out")
    if not whole.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; make it, or give another --out")
    run = next((up for up in (whole, *whole.parents) if (up / "run.lock.yaml").exists()), None)
    if run is not None and not within:
        raise InputError(f"{out} lies in the run {run.name}, which holds what it made itself; give another --out")
    if base is not None and (base.resolve() == whole or whole in base.resolve().parents):
        raise InputError(f"{out} is the base, or holds it, so it is not written to; give another --out")
    if out.exists() and not force:
        raise InputError(f"{out} exists; give another --out, or --force to replace it")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / MARK).is_file())):
        raise InputError(f"{out} was not exported by sparring, so it is not replaced; give another --out")


@contextmanager
def held(out: Path) -> Iterator[None]:
    """One export at a time to a place; what a kill left of others is cleared away. InputError if another is at work."""
    path = out.resolve()
    lock = FileLock(str(path.with_name(f".{path.name}.lock")))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process is exporting to {out}; wait for it, or give another --out") from None
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(lock.lock_file)
        lock.release()


def begin(out: Path, facts: dict[str, Any]) -> Path:
    """A new folder beside `out`, to be filled and then placed. facts: what its mark says."""
    path = out.resolve()
    name = glob.escape(path.name)
    for left in [*path.parent.glob(f"{name}.*{PARTIAL}"), *path.parent.glob(f"{name}.*{DOOMED}")]:
        if (left / MARK).is_file():  # after a kill
            shutil.rmtree(left)
    partial = Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=PARTIAL, dir=path.parent))
    mask = os.umask(0)
    os.umask(mask)
    partial.chmod(0o777 & ~mask)
    write_atomic(partial / MARK, json.dumps(facts, indent=2) + "\n")
    return partial


@contextmanager
def made(out: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """A new folder to fill, which is named `out` at the end; nothing is left of it where it is not filled."""
    partial = begin(out, facts)
    try:
        yield partial
        place(partial, out)
    finally:
        drop(partial)


def place(partial: Path, out: Path) -> None:
    """Give what is finished its name; what was there under it goes after that."""
    old: Path | None = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=DOOMED, dir=out.resolve().parent))
        os.rename(out, old)  # an empty folder may be renamed over
    os.rename(partial, out)
    if old is not None:
        shutil.rmtree(old)


def set_aside(partial: Path, out: Path) -> Path:
    """Name what did not hold so that it says so; returns where it is. Nothing that is there is touched."""
    number, aside = 1, out.with_name(out.name + UNVERIFIED)
    while aside.exists():
        number += 1
        aside = out.with_name(f"{out.name}{UNVERIFIED}-{number}")
    os.rename(partial, aside)
    return aside


def drop(partial: Path) -> None:
    """Remove what was begun here and is not wanted any more."""
    if partial.exists():
        shutil.rmtree(partial)
