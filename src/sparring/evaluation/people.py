"""What several people said of the same pairs, how far they agree, and how far a judge agrees with most of them.

Votes are 1 (the first answer), 0 (the second) or ½ (neither). Agreement is over these three; beside it stands what
chance would give with the same habits, and Cohen's κ = (agreement - chance) / (1 - chance) (Cohen 1960).

Shapes: P prompts; a table [P, 3, 3] counts, prompt by prompt, what one said against what the other said.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparring.data.comparisons import SAID
from sparring.evaluation.statistics import FEWEST, Interval

Votes = Sequence[float]
Table = NDArray[np.float64]
RESAMPLES = 2000


def tables(rows: Sequence[tuple[Hashable, float, float]]) -> Table:
    """Counts [P, 3, 3] from (prompt, what one said, what the other said).

    Each row counts half either way round: which answer stands first says nothing, and κ must not depend on it. (Where
    the chosen answer always stood first, one who always says "first" would agree by chance on nearly everything.)
    """
    places: dict[Hashable, int] = {}
    for prompt, _, _ in rows:
        places.setdefault(prompt, len(places))
    counts = np.zeros((len(places), 3, 3))
    for prompt, mine, theirs in rows:
        for a, b in ((mine, theirs), (1 - mine, 1 - theirs)):
            counts[places[prompt], SAID.index(a), SAID.index(b)] += 0.5
    return counts


def agreement(table: Table) -> Table:
    """Share of the same verdicts, of tables [..., 3, 3]."""
    found: Table = np.trace(table, axis1=-2, axis2=-1) / table.sum(axis=(-2, -1))
    return found


def chance(table: Table) -> Table:
    """The agreement of two who say what these say, as often, but at random."""
    total = table.sum(axis=(-2, -1))
    found: Table = (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1) / total**2
    return found


def kappa(table: Table) -> Table:
    """Cohen's κ of tables [..., 3, 3]; 0 where chance alone agrees on everything."""
    by_chance = chance(table)
    room = np.where(by_chance < 1, 1 - by_chance, 1.0)
    found: Table = np.where(by_chance < 1, (agreement(table) - by_chance) / room, 0.0)
    return found


def interval(counts: Table, measure: Callable[[Table], Table], seed: int = 0) -> Interval | None:
    """95 % interval of a measure of the summed table, by resampling prompts; None with fewer than FEWEST."""
    size = len(counts)
    if size < FEWEST:
        return None
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    found = measure(np.einsum("bp,pij->bij", weights.astype(float), counts))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class People:
    """How far people agree with each other: the ceiling of a judge.

    pairs       that more than one person judged
    agree       two of them say the same
    kappa       the same, beyond chance
    decided     of those who both chose an answer, how many chose the same
    one         one person says what all others, who agree among themselves, say
    label       one person says what the label says, in which that vote counted; a tie is half of it
    """

    pairs: int
    agree: float
    kappa: float
    decided: float | None
    one: float | None
    label: float

    @staticmethod
    def of(votes: Sequence[Votes]) -> People | None:
        """Count pairs of people on each pair of answers; None if nobody has a second opinion."""
        several = [row for row in votes if len(row) > 1]
        if not several:
            return None
        twos = [two for row in several for two in combinations(row, 2)]
        both = [(None, a, b) for a, b in twos] + [(None, b, a) for a, b in twos]  # who is first says nothing
        table = tables(both).sum(axis=0)
        firm = [a == b for a, b in twos if 0.5 not in (a, b)]
        rest = [(row[i], {*row[:i], *row[i + 1 :]}) for row in map(tuple, several) for i in range(len(row))]
        alone = [others == {mine} for mine, others in rest if len(others) == 1 and len(several[0]) > 2]
        label = sum(vote for row in several for vote in row) / sum(map(len, several))
        return People(len(several), float(agreement(table)), float(kappa(table)), _share(firm), _share(alone), label)

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            "pairs": self.pairs, "agree": self.agree, "kappa": self.kappa, "decided": self.decided, "one": self.one,
            "label": self.label,
        }  # fmt: skip

    def text(self) -> str:
        """For people."""
        said = f"two of the people agree on {self.agree:.1%} (κ {self.kappa:.2f})"
        if self.decided is not None:
            said += f", on {self.decided:.1%} where both chose an answer"
        return said + (f"; one agrees with the others, where these agree, on {self.one:.1%}" if self.one else "")


def _share(found: Sequence[bool]) -> float | None:
    return sum(found) / len(found) if found else None
