"""Best of n in the test: the scorer chooses among a player's answers to each prompt, and what that gives as n grows.

The curve is judged by the scorer itself, which is flattered, and by yardsticks that had no part in choosing: where the
scorer's mean goes on rising and theirs falls, choosing has gone too far. P prompts, N answers to each.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.evaluation.asking import Row, matches, validities
from sparring.evaluation.prompting.sheet import Sheet
from sparring.files import write_atomic
from sparring.rewarding import wanted_scorer, worth
from sparring.rewards.rank import best, curve
from sparring.rewards.scorer import Answered, Scorer
from sparring.rewards.settings import MatchScore
from sparring.run import Event
from sparring.session import Session

Numbers = list[list[float]]  # [P][N]
ENDS = ("", "_low", "_high")


@dataclass(frozen=True, slots=True)
class Chosen:
    """All answers [P][N] of a player, what the scorer says of them, and which it chose [P]."""

    told: list[Row]
    scores: Numbers
    indices: list[int]

    @property
    def rows(self) -> list[Row]:
        """The chosen answers [P][1]."""
        return [[row[index]] for row, index in zip(self.told, self.indices, strict=True)]

    @property
    def best_scores(self) -> list[float]:
        return [row[index] for row, index in zip(self.scores, self.indices, strict=True)]

    @property
    def beyond(self) -> list[int]:
        """Per prompt, tokens read and written but for those of the chosen answer; a prompt is read once for all."""
        return [
            row[index].beyond + sum(_written(one) for place, one in enumerate(row) if place != index)
            for row, index in zip(self.told, self.indices, strict=True)
        ]


def scores_of_told(scorer: Scorer, sheet: Sheet, told: Sequence[Row]) -> Numbers:
    """What a scorer says of each answer [P][N]. It may take the ring's seat."""
    asked = [
        Answered(prompt.prompt_ids, one.last.ids, prompt.real_ids)
        for prompt, row in zip(sheet.plain, told, strict=True)
        for one in row
    ]
    found = iter(worth(scorer, asked))
    return [[next(found) for _ in row] for row in told]


def choose(told: list[Row], scores: Numbers) -> Chosen:
    """The first of the highest of each prompt."""
    return Chosen(told, scores, [best(row) for row in scores])


def yardsticks(session: Session, sheet: Sheet, told: Sequence[Row]) -> dict[str, Numbers]:
    """What else says how good each answer is, without what the scorer is itself."""
    scorer, found = wanted_scorer(session.config), {}
    itself = isinstance(scorer, MatchScore) and scorer.match == session.config.evaluation.match
    if not itself and (matched := matches(session, sheet, told)) is not None:
        found["match"] = matched
    if scorer.name != "validity" and (valid := validities(session, sheet, told)) is not None:
        found["valid"] = valid
    return found


def quality_curve(scores: Numbers, yards: Mapping[str, Numbers], prompts: Sequence[Hashable]) -> list[Event]:
    """For n = 1, 2, 4 … N: KL's bound, and the mean of `reward` and of each yardstick with intervals over prompts [P].

    NAME_gain is the mean less that of one answer, row by row, with its interval NAME_gain_low, NAME_gain_high.
    """
    found = {name: curve(scores, prompts, quality) for name, quality in ({"reward": scores} | dict(yards)).items()}
    rows: list[Event] = []
    for index, point in enumerate(found["reward"]):
        row: Event = {"n": point.n, "kl": point.kl}
        for name, points in found.items():
            row |= {name: points[index].quality, f"{name}_low": points[index].low, f"{name}_high": points[index].high}
            row |= {f"{name}_gain{end}": value for end, value in zip(ENDS, points[index].gain, strict=True)}
        rows.append(row)
    return rows


def write_candidates(path: Path, sheet: Sheet, chosen: Chosen, yards: Mapping[str, Numbers]) -> None:
    """A line of JSON per prompt: all answers with their scores, and which was chosen."""
    rows: list[dict[str, Any]] = [
        {"key": prompt.key, "chosen": index, "answers": [one.text for one in told], "scores": scores}
        for prompt, index, told, scores in zip(sheet.plain, chosen.indices, chosen.told, chosen.scores, strict=True)
    ]
    for name, values in yards.items():
        rows = [row | {name: value} for row, value in zip(rows, values, strict=True)]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def _written(one: Any) -> int:
    return sum(len(said.ids) for _, said in one.turns)
