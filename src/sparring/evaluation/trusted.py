"""A judge's agreement with people, measured before its verdict is trusted: on pairs that people have judged.

The judge is asked in both orders, as always; where it contradicts itself it has said neither. Its verdicts are held
against what most people said. The ceiling is how far people agree with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import DataConfig
from sparring.data.load import load_all
from sparring.data.messages import Conversation, Other
from sparring.errors import InputError
from sparring.evaluation.judges import Judge, compare
from sparring.evaluation.people import People, agreement, chance, interval, kappa, tables
from sparring.evaluation.statistics import Interval

REAL = ("rule:closer", "rule:match")  # which compare with a real answer


@dataclass(frozen=True, slots=True)
class Trust:
    """How far a judge can be trusted.

    pairs     on which both said something; prompts: they belong to
    agree     share on which it says what most people say: one answer, the other, or neither
    by_chance what that would be for one who says the same as often, but at random
    decided   of the pairs of which people chose an answer: share on which it chooses the same, a tie counts ½
    swayed    share of its verdicts that change with the order: a liking for a place
    people    how far people agree; None where only one judged each pair
    left_out  rows that could not be used
    """

    judge: str
    pairs: int
    prompts: int
    agree: float
    agree_interval: Interval | None
    by_chance: float
    kappa: float
    kappa_interval: Interval | None
    decided: float | None
    swayed: float
    unclear: int
    people: People | None
    left_out: int

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            "event": "trusted", "judge": self.judge, "n": self.pairs, "prompts": self.prompts,
            "agree": self.agree, "agree_interval": self.agree_interval, "by_chance": self.by_chance,
            "kappa": self.kappa, "kappa_interval": self.kappa_interval, "decided": self.decided,
            "swayed": self.swayed, "unclear": self.unclear, "people": self.people and self.people.facts(),
            "left_out": self.left_out,
        }  # fmt: skip

    def text(self) -> str:
        """For people."""
        agree = _between(self.agree_interval, ".1%")
        said = [
            f"{self.judge} against people, {self.pairs} pairs of {self.prompts} prompts: it says what most of them say "
            f"on {self.agree:.1%}{agree} (by chance {self.by_chance:.1%}), κ {self.kappa:.2f}"
            f"{_between(self.kappa_interval, '.2f')}"
        ]
        if self.decided is not None:
            said.append(f"where they chose an answer it has the same in {self.decided:.1%} (a tie counts ½)")
        said.append(f"its two orders disagreed on {self.swayed:.1%}, which are ties")
        if self.unclear:
            said.append(f"{self.unclear} replies held no verdict")
        ceiling = self.people.text() if self.people else "how far people agree is not known: one judged each pair"
        left = f"; {self.left_out} bad rows were left out" if self.left_out else ""
        return f"{'; '.join(said)}\nceiling: {ceiling}{left}\n{self.conclusion}"

    @property
    def conclusion(self) -> str:
        """One sentence on what its verdicts are worth."""
        if self.kappa_interval is None:
            return "too few prompts to say whether it agrees with people beyond chance"
        if self.kappa_interval[0] <= 0:
            return "no agreement beyond chance was seen: do not trust what it says"
        if self.people is not None and self.kappa_interval[1] < self.people.kappa:
            return "it agrees with people beyond chance, but for certain less than they do among themselves"
        return "it agrees with people beyond chance"


def trust(
    judge: Judge, name: str, file: Path, told: Callable[[int], None] | None = None, limit: int | None = None
) -> Trust:
    """Hold a judge against the people of `file`: preference pairs in any format. limit: pairs, for a trial.

    Raises DataError for a file that cannot be used, InputError for a judge that needs a real answer.
    """
    if name in REAL:
        raise InputError(f"judge {name} needs a real answer, which people's pairs do not have; leave --people out")
    rows, counts, _ = load_all(DataConfig(train=str(file), bad_rows="skip", ties="half"))
    rows = rows[:limit]
    asked = [question(row) for row in rows]
    verdicts = compare(judge, [(asked[i], *_answers(row)) for i, row in enumerate(rows)], told)
    said = [(asked[i], verdicts.wins[i], _people(row)) for i, row in enumerate(rows)]
    counted = tables(said)
    table = counted.sum(axis=0)
    firm = [1 - abs(mine - theirs) for _, mine, theirs in said if theirs != 0.5]
    return Trust(
        judge=name,
        pairs=len(said),
        prompts=len(counted),
        agree=float(agreement(table)),
        agree_interval=interval(counted, agreement),
        by_chance=float(chance(table)),
        kappa=float(kappa(table)),
        kappa_interval=interval(counted, kappa),
        decided=sum(firm) / len(firm) if firm else None,
        swayed=verdicts.disagreed / len(said),
        unclear=verdicts.unclear,
        people=People.of([_other(row).votes for row in rows]),
        left_out=sum(count for kind, count in counts.items() if kind.startswith("bad: ")),
    )


def question(row: Conversation) -> str:
    """What was asked, as one text: the only turn's, or all turns before the answer, each marked."""
    turns = row.messages[:-1]
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)


def _answers(row: Conversation) -> tuple[str, str]:
    return row.messages[-1].content, _other(row).rejected


def _people(row: Conversation) -> float:
    """What most people said of (chosen, rejected)."""
    return 0.5 if _other(row).tie else 1.0


def _other(row: Conversation) -> Other:
    assert row.other is not None
    return row.other


def _between(found: Interval | None, form: str) -> str:
    return "" if found is None else f" [{found[0]:{form}}, {found[1]:{form}}]"
