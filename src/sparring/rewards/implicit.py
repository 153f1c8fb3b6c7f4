"""The implicit reward of any run: β·(log p_θ(y|x) - log p_ref(y|x)) (Rafailov et al. 2023, arXiv 2305.18290, §5.1).

What is left out, β·log Z(x), is the same for all answers to a prompt: compare scores only within one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

from sparring.data.collate import Row
from sparring.errors import RewardError, RunError
from sparring.files import digest, read_json
from sparring.models.player import ABOUT, Player
from sparring.models.players import Ring
from sparring.models.scoring import score
from sparring.names import player_folder, player_name
from sparring.rewards.scorer import Answered, finite
from sparring.rewards.settings import ImplicitScore


def implicit_players(settings: ImplicitScore) -> tuple[Path | None, Path | None]:
    """The folders of θ and of the reference, None for the base; RewardError where there are none, or they are one."""
    run = Path(settings.run).expanduser()
    if not (run / "run.lock.yaml").exists():
        raise RewardError(f"scorer.run {run} is no run; give a run's folder (run.lock.yaml)")
    try:
        names = [player_name(run, name) for name in (settings.player, settings.reference)]
    except RunError as error:
        raise RewardError(f"scorer implicit: {error}".replace("--player", "scorer.player")) from None
    if names[0] == names[1]:
        raise RewardError(
            f"scorer implicit: player and reference are both {names[0]}, so every score would be 0; give another "
            "scorer.player or scorer.reference"
        )
    return player_folder(run, names[0]), player_folder(run, names[1])


def implicit_fingerprint(settings: ImplicitScore) -> str:
    """Of all that decides its scores."""
    prints = [folder and read_json(folder / ABOUT)["fingerprint"] for folder in implicit_players(settings)]
    return digest(["implicit", *prints, settings.beta, settings.reduction])


def check_implicit(settings: ImplicitScore, base_fingerprint: str) -> None:
    """Refuse players of another base."""
    for folder in implicit_players(settings):
        theirs = base_fingerprint if folder is None else read_json(folder / ABOUT)["base"]
        if theirs != base_fingerprint:
            raise RewardError(
                f"scorer implicit: the player {folder} stands on another base or tokenizer ({theirs}) than this run's "
                f"({base_fingerprint}); give a run on this base"
            )


@final
class ImplicitScorer:
    """Two players take their turns on the ring; the second is the one that stays."""

    def __init__(self, ring: Ring, settings: ImplicitScore, tokens: int) -> None:
        check_implicit(settings, ring.base.fingerprint)
        folders = implicit_players(settings)
        self.players = [Player.load(folder) if folder else Player.untrained(ring.base) for folder in folders]
        self.ring, self.settings, self.tokens = ring, settings, tokens
        run = Path(settings.run).expanduser().resolve().name
        self.label = f"implicit reward of {run} ({settings.player} against {settings.reference})"
        self.fingerprint = implicit_fingerprint(settings)

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """β times the difference of log-probs [N], in nats; by reduction mean, per token."""
        if not answers:
            return []
        rows: list[Row] = [(answer.prompt_ids, answer.ids) for answer in answers]
        player, reference = (
            score(self.ring.seat(player), self.ring.base, rows, self.tokens) for player in self.players
        )
        mean = self.settings.reduction == "mean"
        sizes = [len(answer.ids) if mean else 1 for answer in answers]
        found = [self.settings.beta * (a - b) / n for a, b, n in zip(player, reference, sizes, strict=True)]
        return [finite(self.label, value) for value in found]
