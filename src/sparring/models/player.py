"""A player on disk: a chain of adapter folders, or one folder with a whole model, and what player.json says of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from sparring.errors import ModelError
from sparring.files import digest, read_json, write_atomic
from sparring.models.adapters import WEIGHTS as ADAPTER
from sparring.models.base import Base
from sparring.models.whole import WEIGHTS

ABOUT = "player.json"


@dataclass(frozen=True, slots=True)
class Player:
    """A chain of adapter folders, oldest first; an empty chain is the base itself.

    fingerprint  of the base and of every adapter's weights
    """

    adapters: tuple[Path, ...]
    hold: str
    fingerprint: str

    @staticmethod
    def untrained(base: Base, hold: str = "continue") -> Player:
        """The base itself as a player."""
        return Player((), hold, digest([base.fingerprint]))

    @staticmethod
    def load(folder: Path) -> Player:
        """A player from its folder; ModelError if it holds none."""
        if not (folder / ABOUT).exists():
            raise ModelError(f"{folder} holds no player ({ABOUT}); give a folder that a run made")
        about = read_json(folder / ABOUT)
        chain = tuple((folder / step).resolve() for step in about["chain"])
        gone = next((step for step in chain if not any((step / name).exists() for name in (ADAPTER, WEIGHTS))), None)
        if gone is not None:
            raise ModelError(
                f"{gone} holds no weights any more: selfplay.keep did not keep them, or they were removed; "
                "take θ_0, the best or the last player"
            )
        return Player(chain, about["hold"], about["fingerprint"])


def sign(folder: Path, base: Base, hold: str, kept: tuple[Path, ...], prints: list[str], home: Path) -> Player:
    """Write player.json into a player's folder, which will be `home`, and stands on the chain `kept`.

    prints  fingerprints of the adapters in the chain, this one's last
    """
    about = {
        "base": base.fingerprint,
        "adapter": prints[-1],
        "hold": hold,
        "chain": [*(_relative(step, home) for step in kept), "."],
        "fingerprint": digest([base.fingerprint, *prints]),
    }
    write_atomic(folder / ABOUT, json.dumps(about, indent=2) + "\n")
    return Player((*kept, home), hold, str(about["fingerprint"]))


def _relative(step: Path, home: Path) -> str:
    """`step` as seen from `home`, both in one run folder, so that the folder can be moved."""
    return Path(os.path.relpath(step.resolve(), home.resolve())).as_posix()
