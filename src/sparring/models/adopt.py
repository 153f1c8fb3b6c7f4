"""`start: path`: a player or an adapter made elsewhere as theta_0."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sparring.errors import ModelError
from sparring.files import read_json
from sparring.models.adapters import CONFIG
from sparring.models.adapters import WEIGHTS as ADAPTER
from sparring.models.player import ABOUT, Player, sign
from sparring.models.players import Ring
from sparring.models.whole import WEIGHTS as WHOLE

FILES = (CONFIG, ADAPTER, "config.json", WHOLE)


def adopt(ring: Ring, given: Path, folder: Path, hold: str, run_folder: Path, name: str) -> None:
    """Write the player in the folder `given` as theta_0 to `folder`, which will be renamed to run_folder/name.

    given  a player of any run, or an adapter made by PEFT, TRL or Unsloth
    Raises ModelError if it is of another base, or stands on adapters that `hold` cannot go on with.
    """
    if not (given / ABOUT).exists():
        ring.adopt(given, folder, hold, run_folder, name)
        return
    player = Player.load(given)
    count = len(player.adapters)
    if count > 1 and player.hold != hold:
        raise ModelError(
            f"start {given} stands on {count} adapters (selfplay.hold {player.hold}), which hold {hold} cannot go on "
            f"with; set selfplay.hold={player.hold}"
        )
    ring.seat(player)  # it must be of this base, and unchanged
    prints = [read_json(step / ABOUT)["adapter"] for step in player.adapters]
    homes = [run_folder / name / "under" / str(number) for number in range(count - 1)] + [run_folder / name]
    for number, step in enumerate(player.adapters):
        copy = folder if number == count - 1 else folder / "under" / str(number)
        copy.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            if (step / file).exists():
                shutil.copyfile(step / file, copy / file)
        sign(copy, ring.base, hold, tuple(homes[:number]), prints[: number + 1], homes[number])


def other_base(given: Path, name: str) -> str:
    """What to say if an adapter made elsewhere names another base than this one; empty if it does not."""
    if (given / ABOUT).exists() or not (given / CONFIG).exists():
        return ""
    theirs = str(read_json(given / CONFIG).get("base_model_name_or_path") or "").rstrip("/").rpartition("/")[2]
    name = re.sub(r".*/models--[^/]+?--([^/]+)/snapshots/[^/]+", r"\1", name.rstrip("/"))  # in the hub's cache
    mine = name.rpartition("/")[2]
    plain = theirs.lower().removesuffix("-bnb-4bit").removesuffix("-unsloth")
    if not theirs or plain == mine.lower():
        return ""
    return (
        f"start says it was trained on {theirs}, but the base is {mine}; that they fit in shape is all that can be told"
    )
