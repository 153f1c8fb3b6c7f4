"""The players of a run by name: best, base, sft, or an iteration's number."""

from __future__ import annotations

import json
from pathlib import Path

from sparring.errors import RunError, nearest


def reward_model(run: Path) -> bool:
    """Whether a run's folder is of `sparring reward`, finished or not."""
    return any((run / name).exists() for name in ("reward", "reward.partial", "reward-scores"))


def player_name(run: Path, player: str) -> str:
    """The player's own name: of `best`, that of the player which was chosen. Raises RunError if there is none."""
    if reward_model(run):
        raise RunError(f"{run} is of a reward model, which gives scores and no answers; see `sparring reward score`")
    if player == "best":
        best = run / "best" / "best.json"
        if not best.exists():
            raise RunError(
                f"{run} is not finished, so no best player is chosen; finish it, or give --player sft or 0, 1, …"
            )
        player = str(json.loads(best.read_text(encoding="utf-8"))["player"])
    there = [path.parent.parent.name for path in run.glob("*/player/player.json")]
    there += ["sft"] if (run / "sft" / "player.json").exists() else []
    if player not in ("base", *there):
        raise RunError(f'this run has no player "{player}"; {nearest(player, ["base", "best", *there])}')
    return player


def player_folder(run: Path, player: str) -> Path | None:
    """The folder of a named player; None for the base."""
    name = player_name(run, player)
    return None if name == "base" else run / "sft" if name == "sft" else run / name / "player"
