"""What a study says in words: its verdict, every difference, notes and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.arms import Arm, Ran, rewarded
from sparring.config import CompareConfig
from sparring.evaluation.metrics import METRICS
from sparring.evaluation.paired import CLAIM, Difference
from sparring.evaluation.verdicts import along, headline, judgement

Pair = tuple[str, str]  # an arm, and the one it is compared with
APART = 0.05  # share by which budgets may differ before it is said


@dataclass(frozen=True, slots=True)
class Words:
    """What is said of a difference. `adjusted` holds Holm's p of the declared comparisons."""

    asked: CompareConfig
    labels: Mapping[str, str]
    adjusted: Mapping[Pair, float]

    def headline(self, arms: Sequence[Mapping[str, Any]], found: Mapping[Pair, Difference]) -> str:
        """The verdict on the primary metric: target against reference, or all that an axis compares."""
        asked, name = self.asked, self.asked.metric
        pair = (asked.target, asked.reference)
        if pair not in found:
            return f"{METRICS[name].label} was not measured for both {asked.target} and {asked.reference}: no verdict."
        means = {arm["label"]: arm["values"][name]["mean"] for arm in arms if name in arm["values"]}
        if asked.axis is not None:
            return along(METRICS[name], means, self._compared(arms, found), asked.smallest)
        target, reference = self.labels[asked.target], self.labels[asked.reference]
        holm_p, many = self.adjusted.get(pair), len(self.adjusted)
        return headline(METRICS[name], means, target, reference, found[pair], holm_p, asked.smallest, many)

    def _compared(
        self, arms: Sequence[Mapping[str, Any]], found: Mapping[Pair, Difference]
    ) -> dict[str, dict[str, tuple[Difference, float | None]]]:
        """Along an axis, where fine-tuning and self-play take turns: what is compared with what, by value."""
        short = {arm["name"]: arm["label"].removesuffix(" SFT").removesuffix(" self-play") for arm in arms}
        alone, first = {arm["name"] for arm in arms[::2]}, short[arms[0]["name"]]
        play, tuned, own = f"Self-play, against {first}", f"SFT, against {first}", "Self-play, against its own SFT"
        said: dict[str, dict[str, tuple[Difference, float | None]]] = {play: {}, tuned: {}, own: {}}
        for (mine, other), one in found.items():
            compared = tuned if mine in alone else own if other in alone else play
            said[compared][short[mine]] = (one, self.adjusted.get((mine, other)))
        return said

    def of(self, pair: Pair, name: str, found: Difference) -> dict[str, Any]:
        """A difference as study.json keeps it. Only those declared, on the primary metric, are in the family."""
        primary = name == self.asked.metric
        holm_p = self.adjusted.get(pair) if primary else None
        smallest = self.asked.smallest if primary else None
        names = (self.labels[pair[0]], self.labels[pair[1]])
        many = len(self.adjusted) if holm_p is not None else None
        return {
            "mean": found.mean,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "holm": holm_p,
            "words": judgement(METRICS[name], found, holm_p, smallest, names, many),
        }


def notes(
    asked: CompareConfig, ran: Sequence[Ran], arms: Sequence[Mapping[str, Any]], history: list[dict[str, Any]]
) -> list[str]:
    """What was made equal, corrected, chosen, and added later."""
    said = [_equal(asked, ran, arms), _corrected(asked), *_ranked(ran)]
    tried = [one.arm for one in ran if len(one.arm.values) > 1]
    if tried:
        seeds = asked.seeds[: asked.tune_seeds]
        said.append(
            f"For {len(tried)} arms a value was chosen on held-out prompts (seed{'s' * (len(seeds) > 1)} "
            f"{', '.join(map(str, seeds))}), never on the test prompts."
        )
    if len(history) > 1:
        said.append(
            f"Seeds or arms were added {len(history) - 1} time{'s' * (len(history) > 2)} after results had been seen; "
            "the first time it was asked for "
            f"{', '.join(history[0]['arms'])} with seeds {', '.join(map(str, history[0]['seeds']))}."
        )
    return said


def _equal(asked: CompareConfig, ran: Sequence[Ran], arms: Sequence[Mapping[str, Any]]) -> str:
    if asked.axis is not None:
        return (
            f"Along {asked.axis.key}: every value sees the same data for as many epochs and iterations. No budget is "
            "made equal; what each costs stands beside it."
        )
    unit = {"flops": "FLOPs"}.get(asked.match, asked.match)
    label = next(one.arm.label for one in ran if one.arm.name == asked.target)
    off = [one.arm.label for one, _ in _unequal(asked, ran, arms)]
    every = f"Every arm but {' and '.join(filter(None, [', '.join(off[:-1]), off[-1]]))}" if off else "Every arm"
    return (
        f"{every} spends the same {unit} on self-play, or on what stands in its place, as {label} did with the same "
        f"seed; judging is not counted{', nor is what the scorer computes' * any(rewarded(one.arm) for one in ran)}."
    )


def _ranked(ran: Sequence[Ran]) -> list[str]:
    """What the best of n answers costs."""
    labels = {one.arm.name: one.arm.label for one in ran}
    made = [one.arm for one in ran if one.arm.best_of > 1]
    if not made:
        return []
    trained = ", ".join(dict.fromkeys(labels[arm.after or ""] for arm in made))
    times = " or ".join(str(many) for many in sorted({arm.best_of for arm in made}))
    return [
        f"The best of n answers is of players that were not trained again: the budget shown is that of {trained}. Each "
        f"answer costs {times} times the sampled tokens, and as many scores, which no budget makes equal."
    ]


def _corrected(asked: CompareConfig) -> str:
    family = "with the reference" if asked.axis is None else "with the first value, and of self-play with its own SFT,"
    return (
        f"Only the comparisons of {METRICS[asked.metric].label} {family} are corrected for their number; "
        "all others are shown as they are, and among many some come out by chance."
    )


def warnings(asked: CompareConfig, ran: Sequence[Ran], arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the study itself; its runs' warnings stand beside them."""
    found = []
    if asked.match == "seconds" and asked.jobs > 1:
        found.append(f"{asked.jobs} runs shared the machine while seconds were made equal: their clocks are rough")
    if asked.axis is not None:
        found += [said for one in ran if (said := _at_the_end(one))]
        if asked.jobs > 1:
            found.append(f"{asked.jobs} runs shared the machine: seconds and speeds are rough")
    else:
        found += _apart(asked, ran, arms)
    if len(asked.seeds) < CLAIM:
        few = "one seed" if len(asked.seeds) == 1 else f"{len(asked.seeds)} seeds"
        found.append(f"{few}: a claim needs {CLAIM} or more")
    return found


def _unequal(asked: CompareConfig, ran: Sequence[Ran], arms: Sequence[Mapping[str, Any]]) -> list[tuple[Ran, float]]:
    """Arms whose budgets did not come out equal, and what they spent as a share of the target's."""
    spent = {arm["name"]: arm["budget"][asked.match] for arm in arms}
    goal = spent[asked.target]
    shares = [(one, spent[one.arm.name] / goal) for one in ran if one.arm.matched and one.arm.best_of == 1 and goal]
    return [(one, share) for one, share in shares if abs(share - 1) > APART]


def _apart(asked: CompareConfig, ran: Sequence[Ran], arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is said of arms whose budgets did not come out equal, with the reason."""
    found = []
    for one, share in _unequal(asked, ran, arms):
        why = _more(one.arm) if share > 1 else _less(one.arm)
        if asked.match == "seconds":
            why = "seconds are a forecast, or " + why
        found.append(f"{one.arm.label} spent {share:.0%} of the target's {asked.match}: {why}")
    return found


def _more(arm: Arm) -> str:
    if rewarded(arm):
        return (
            "a prompt's group of answers, its scores and a step of learning are the least that it can do, and what "
            "they take was forecast"
        )
    return "what it learns from took more than its share to make, or a step, which is learnt at least, cannot be cut"


def _less(arm: Arm) -> str:
    if rewarded(arm):
        return (
            "what was left did not pay for another prompt's group, nothing was left to learn from, an iteration was "
            "stopped early, or no more passes over the same answers are made"
        )
    return "an iteration was stopped early, nothing was left to learn from, or a step cannot be cut"


def _at_the_end(ran: Ran) -> str | None:
    """Whether the best value of a grid was its first or last, so that one beyond it may be better."""
    arm, known = ran.arm, [value for value in ran.validation if value is not None]
    if len(arm.values) < 2 or len(set(known)) < 2 or ran.chosen not in (min(arm.values), max(arm.values)):
        return None
    lowest = ran.chosen == min(arm.values)
    return (
        f"{arm.label}: the chosen {arm.key}, {ran.chosen:g}, is the {'lowest' if lowest else 'highest'} tried; a "
        f"{'lower' if lowest else 'higher'} one may be better"
    )
