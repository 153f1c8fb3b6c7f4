"""A reward model as a scorer, and its folder: a PEFT adapter, player.json, head.safetensors, reward.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from sparring.data.messages import Renderer
from sparring.errors import RewardError
from sparring.files import digest, read_json, write_atomic
from sparring.models.player import ABOUT, Player
from sparring.models.players import Ring
from sparring.models.reward_head import FILE, RewardHead, load_head, reward, save_head
from sparring.rewards.scorer import Answered, finite

RECORD = "reward.json"


def save_reward(folder: Path, renderer: Renderer, player: Player, head: RewardHead) -> None:
    """Write the head, and what it belongs to, beside the player's adapter."""
    said = {"head": save_head(folder, head), "player": player.fingerprint, "template": template_of(renderer)}
    write_atomic(folder / RECORD, json.dumps(said, indent=2) + "\n")


def template_of(renderer: Renderer) -> str:
    """The fingerprint of how conversations become tokens."""
    return digest([renderer.template, renderer.end_ids])


@dataclass(frozen=True, slots=True)
class Made:
    """A reward model's folder, read but for its weights.

    base  the fingerprint of the base that it stands on, tokenizer included
    head, template, fingerprint  of its head, of the template it learnt with, and of the player with its head
    """

    folder: Path
    name: str
    base: str
    head: str
    player: str
    template: str

    @property
    def fingerprint(self) -> str:
        """Of all that decides its rewards."""
        return digest([self.player, self.head, self.template])


def find_reward(path: Path) -> Made:
    """A reward model by the run that made it, or by its folder; RewardError if there is none."""
    path = path.expanduser()
    folder = path / "reward" if (path / "reward" / RECORD).exists() else path
    if not (folder / RECORD).exists() or not (folder / ABOUT).exists() or not (folder / FILE).exists():
        said = "is not finished" if (path / "reward.partial").exists() else "is no reward model"
        raise RewardError(
            f"{path} {said} ({RECORD}, {FILE}); give a run that `sparring reward` finished, or its folder"
        )
    about, said_of = read_json(folder / RECORD), read_json(folder / ABOUT)
    name = folder.resolve().parent.name if folder.name == "reward" else folder.resolve().name
    return Made(folder, name, said_of["base"], about["head"], about["player"], about["template"])


def check_reward(made: Made, base_fingerprint: str, renderer: Renderer) -> None:
    """Refuse a reward model whose numbers would mean nothing here."""
    if made.base != base_fingerprint:
        raise RewardError(
            f"the reward model {made.folder} stands on another base or tokenizer ({made.base}) than this run's "
            f"({base_fingerprint}); train one on this base, or give the base it belongs to"
        )
    if made.template != template_of(renderer):
        raise RewardError(
            f"the reward model {made.folder} learnt with another chat template than this run's; set model.template to "
            "the one it was trained with"
        )


@final
class ModelScorer:
    """r(x, y) of a reward model."""

    def __init__(self, ring: Ring, made: Made, tokens: int) -> None:
        check_reward(made, ring.base.fingerprint, ring.base.renderer)
        player = Player.load(made.folder)
        if player.fingerprint != made.player:
            raise RewardError(f"{made.folder} holds a head and an adapter that were not made together; make it again")
        self.ring, self.tokens, self.player = ring, tokens, player
        self.head = load_head(made.folder, ring.base, made.head)
        self.label, self.fingerprint = f"reward model {made.name}", made.fingerprint

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Rewards [N], without unit: only their differences mean something."""
        model = self.ring.seat(self.player)
        rows = [(answer.prompt_ids, answer.ids) for answer in answers]
        found = reward(model, self.ring.base, self.head, rows, self.tokens) if rows else []
        return [finite(f"the {self.label}", value) for value in found]
