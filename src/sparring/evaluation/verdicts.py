"""What a comparison says in words: every sentence follows from the interval, from Holm's p, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sparring.evaluation.metrics import Metric
from sparring.evaluation.paired import CLAIM, FEW, LEVEL, Difference, needed

Outcome = Literal["better", "worse", "higher", "lower", "negligible", "uncertain", "none", "unknown"]


def outcome(metric: Metric, difference: Difference, holm_p: float | None, smallest: float | None) -> Outcome:
    """One word for mine against theirs; the first that fits.

    unknown     there is no interval
    none        the interval includes 0
    negligible  it excludes 0, and all of it is closer to 0 than `smallest`
    uncertain   it excludes 0, but Holm's p (None: nothing else was compared) is not below 0.05
    better or worse; higher or lower where the metric has no better way
    """
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "unknown"
    if low <= 0 <= high:
        return "none"
    if smallest is not None and max(abs(low), abs(high)) < smallest:
        return "negligible"
    if holm_p is not None and holm_p >= LEVEL:
        return "uncertain"
    way: Literal["lower", "higher"] = "lower" if high < 0 else "higher"
    if metric.better is None:
        return way
    return "better" if way == metric.better else "worse"


def judgement(
    metric: Metric,
    difference: Difference,
    holm_p: float | None,
    smallest: float | None,
    names: tuple[str, str],
    comparisons: int | None = None,
) -> str:
    """Names[0] against names[1] in one sentence, and a second one if seeds or prompts are too few.

    smallest     difference of this metric that matters, above 0; None: none was declared
    comparisons  that Holm's p corrects for; None: said as "all"
    """
    mine, theirs = names
    found = outcome(metric, difference, holm_p, smallest)
    size, many = figures(metric, difference), sample(difference)
    if found == "unknown":
        said = f"Whether {mine} differs from {theirs} in {metric.label} is not known: no interval ({size}, {many})."
    elif found == "none":
        said = (
            f"{mine} and {theirs} in {metric.label}: no difference seen; at most {_at_most(difference)} with "
            f"these {many} ({size})."
        )
    elif found == "negligible":
        said = (
            f"{mine} and {theirs} in {metric.label}: the difference is of no practical size, less than "
            f"{_short(smallest)} ({size}, {many})."
        )
    elif found == "uncertain":
        said = (
            f"{mine} is {_way(metric, difference)} than {theirs} in {metric.label} in this sample, but that is "
            f"{_not_certain(holm_p, comparisons)} ({size}, {many})."
        )
    else:
        said = f"{mine} is {found} than {theirs} in {metric.label} ({size}, {many})."
    return f"{said} {caveat(difference, smallest, found)}".strip()


def headline(
    metric: Metric,
    means: Mapping[str, float],
    target: str,
    reference: str,
    difference: Difference,
    holm_p: float | None,
    smallest: float | None,
    comparisons: int | None = None,
) -> str:
    """The first words of a study: whether the target (mine) beats the reference, and which arm is best.

    means   of every arm on the primary metric, which must have a better way (else ValueError)
    others  as in `judgement`
    """
    if metric.better is None:
        raise ValueError(
            f"{metric.label} has no better way, so no arm can be best on it; choose another primary metric"
        )
    found = outcome(metric, difference, holm_p, smallest)
    size = f"{figures(metric, difference)}, {sample(difference)}"
    reasons = {
        "none": f"no difference seen in {metric.label}, at most {_at_most(difference)} ({size})",
        "negligible": f"the difference in {metric.label} is of no practical size, below {_short(smallest)} ({size})",
        "uncertain": f"{_way(metric, difference)} in {metric.label}, but {_not_certain(holm_p, comparisons)} ({size})",
        "worse": f"it is worse in {metric.label} ({size})",
    }
    if found == "better":
        said = f"{target} beats {reference} in {metric.label} ({size})."
    elif found == "unknown":
        said = f"Whether {target} beats {reference} in {metric.label} is not known: no interval ({size})."
    else:
        said = f"{target} does not beat {reference}: {reasons[found]}."
    return f"{said} {_best(metric, means, target)} {caveat(difference, smallest, found)}".strip()


def along(
    metric: Metric,
    means: Mapping[str, float],
    found: Mapping[str, Mapping[str, tuple[Difference, float | None]]],
    smallest: float | None,
) -> str:
    """The first words of a comparison along an axis: in what the values differ, and which arm is best.

    means  of every arm on the primary metric, which must have a better way (else ValueError)
    found  what is compared with what → the name of each value, its difference and Holm's p; one at the least
    """
    if metric.better is None:
        raise ValueError(
            f"{metric.label} has no better way, so no arm can be best on it; choose another primary metric"
        )
    size = next(one for of_value in found.values() for one, _ in of_value.values())
    parts = [f"Measured in {metric.label}, {sample(size)}."]
    for compared, of_value in found.items():
        groups: dict[str, list[str]] = {}
        for name, (one, holm_p) in of_value.items():
            groups.setdefault(_in_words(metric, one, outcome(metric, one, holm_p, smallest)), []).append(name)
        if groups:
            parts.append(f"{compared}: {'; '.join(f'{word} with {_listed(names)}' for word, names in groups.items())}.")
    return " ".join([*parts, _best(metric, means, ""), caveat(size, None, "better")]).strip()


def _in_words(metric: Metric, difference: Difference, found: Outcome) -> str:
    if found == "uncertain":
        return f"{_way(metric, difference)}, but not certain after correcting,"
    said: dict[Outcome, str] = {
        "none": "no difference seen",
        "negligible": "none of practical size",
        "unknown": "not known",
    }
    return said.get(found, found)


def caveat(difference: Difference, smallest: float | None, found: Outcome = "none") -> str:
    """What one seed or fewer than FEW prompts leave open and, where no difference was found, what would be needed."""
    lacks = []
    if difference.seeds == 1:
        lacks.append("one seed does not say how much seeds differ")
    if difference.prompts < FEW:
        lacks.append(f"{_count(difference.prompts, 'prompt')} are few")
    if not lacks:
        return ""
    seeds, prompts, purpose = max(difference.seeds, CLAIM), max(difference.prompts, FEW), ""
    if smallest is not None:
        seeds, prompts = needed(difference, smallest)
        purpose = f" to tell a difference of {_short(smallest)}"
    because = " and ".join(lacks)
    if found in ("better", "worse", "higher", "lower") and difference.seeds > 1:
        return f"{because[0].upper()}{because[1:]}."
    return (
        f"{because[0].upper()}{because[1:]}: at least {_count(seeds, 'seed')} × {_count(prompts, 'prompt')} would be "
        f"needed{purpose}."
    )


# ---------------------------------------------------------------- numbers and words


def figures(metric: Metric, difference: Difference) -> str:
    """Mine − theirs with its interval and unit, as in "−0.0210 [−0.0300, −0.0120] nats per token"."""
    written = _fixed(difference.mean, sign=True)
    if difference.low is not None and difference.high is not None:
        written += f" [{_fixed(difference.low, sign=True)}, {_fixed(difference.high, sign=True)}]"
    return f"{written} {metric.unit}".rstrip()


def sample(difference: Difference) -> str:
    """Seeds and prompts, as in 3 seeds × 200 prompts."""
    return f"{_count(difference.seeds, 'seed')} × {_count(difference.prompts, 'prompt')}"


def _fixed(value: float, sign: bool = False) -> str:
    digits = ".4f" if value == 0 or abs(value) >= 5e-5 else ".1e"  # what is not 0 is not shown as 0
    written = f"{value:{'+' if sign else ''}{digits}}"
    if float(written) == 0:
        written = written.lstrip("+-")
    return written.replace("-", "−")


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _at_most(difference: Difference) -> str:
    return _fixed(max(abs(difference.low or 0.0), abs(difference.high or 0.0)))


def _way(metric: Metric, difference: Difference) -> str:
    way = "lower" if difference.mean < 0 else "higher"
    if metric.better is None:
        return way
    return "better" if way == metric.better else "worse"


def _not_certain(holm_p: float | None, comparisons: int | None) -> str:
    over = "all comparisons" if comparisons is None else _count(comparisons, "comparison")
    return f"not certain after correcting for {over} (p = {holm_p or 0.0:.3f})"


def _best(metric: Metric, means: Mapping[str, float], target: str) -> str:
    if len(means) > 1 and len(set(means.values())) == 1:
        return f"All {len(means)} arms have the same mean."
    best = (min if metric.better == "lower" else max)(means, key=means.__getitem__)
    word = "lowest" if metric.better == "lower" else "highest"
    figure = f"{_fixed(means[best])} {metric.unit}".rstrip()
    if best == target:
        return f"Its mean, {figure}, is the {word} of {_count(len(means), 'arm')}."
    return f"The {word} mean of {_count(len(means), 'arm')} is that of {best}, {figure}."
