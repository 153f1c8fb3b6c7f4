"""What a run of `sparring dpo` says in words: the verdict on held-out pairs, and what went wrong on the way."""

from __future__ import annotations

from sparring.report.records import Row, Run, difference, number, text
from sparring.report.tables import fixed, interval, percent

PLAYER = "0"
FELL = 0.05  # nats per answer
BASELINES = {"preference_longer": "the longer answer", "preference_likelier": "the likelier one under the reference"}


def preference_verdict(run: Run) -> str:
    """Who is best, how well the player tells held-out pairs apart, and whether that is more than nothing."""
    row = run.preferred
    best = text((run.best or {}).get("player"))
    head = f"Best player: {run.label(best)}." if run.best else "This run is unfinished: no best player has been chosen."
    label = run.label(PLAYER)
    share, low, high = (number(row, f"preference{part}") for part in ("", "_low", "_high"))
    if share is None:
        return head
    pairs, prompts = number(row, "n") or 0, number(row, "prompts") or 0
    said = (
        f"{label} gives the chosen answer the higher implicit reward in {percent(share)}{_between(low, high)} of "
        f"{pairs:.0f} held-out pairs ({prompts:.0f} prompts)"
    )
    others = [
        f"{what} is the chosen one in {percent(number(row, key))}" for key, what in BASELINES.items() if key in row
    ]
    parts = [head, f"{said}; chance gives 50 %, {', '.join(others)}.", _certain(low, high), *_no_better(row, share)]
    return " ".join([*parts, *_ceiling(row), _likelihood(run)]).strip()


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{percent(low)}, {percent(high)}]"


def _certain(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "With so few prompts there is no interval."
    if low > 0.5:
        return "The interval lies above 50 %: it learnt something of these preferences."
    return "The interval lies below 50 %." if high < 0.5 else "The interval includes 50 %: no preference was seen."


def _no_better(row: Row, share: float) -> list[str]:
    """What learnt nothing and is as good, or not certainly worse by the paired interval."""
    as_good, unsure = [], []
    for key, what in BASELINES.items():
        gap = row.get(f"{key}_gap")
        low = number(gap, "low") if isinstance(gap, dict) else None
        if (number(row, key) or 0.0) >= share:
            as_good.append(what)
        elif isinstance(gap, dict) and low is not None and low <= 0:
            unsure.append(f"{what} ({_points(number(gap, 'mean'))} {_points(low)} to {_points(number(gap, 'high'))})")
    found = [f"Taking {' or '.join(as_good)} does as well without learning."] if as_good else []
    return found + ([f"It is not certainly better than taking {' or '.join(unsure)}."] if unsure else [])


def _points(share: float | None) -> str:
    return f"{fixed(100 * (share or 0.0), 1, sign=True)}"


def _ceiling(row: Row) -> list[str]:
    people = row.get("people")
    if not isinstance(people, dict) or number(people, "agree") is None:
        return []
    return [f"Two of the people who made these pairs agree on {percent(number(people, 'agree'))} of them."]


def _likelihood(run: Run) -> str:
    """NLL beside it, and whether the two disagree."""
    row, start = run.scores.get(PLAYER, {}), run.scores.get(run.start, {})
    mine, theirs, paired = number(row, "nll"), number(start, "nll"), difference(row)
    if mine is None or theirs is None:
        return ""
    said = f"Held-out NLL of chosen answers {fixed(mine)} against {fixed(theirs)} for {run.label(run.start)}"
    if paired is None:
        return f"{said}."
    by = f"difference {fixed(paired[0], sign=True)} {interval(*paired[1:], sign=True)}"
    if paired[1] > 0 and (number(run.preferred, "preference") or 0.0) > 0.5:
        return f"{said}: {by}, so the two yardsticks disagree."
    return f"{said}: {by}."


def preference_warnings(run: Run) -> list[str]:
    """Both log-probs fell: the margin grew without the chosen answers becoming likelier."""
    chosen, rejected = number(run.preferred, "chosen_shift"), number(run.preferred, "rejected_shift")
    if chosen is None or rejected is None or chosen > -FELL:
        return []
    label = run.label(PLAYER)
    if rejected > -FELL:
        return [f"{label}: held-out chosen answers became less likely ({fixed(chosen, 2, sign=True)} nats per answer)"]
    return [
        f"{label}: likelihood displacement: on held-out pairs both log-probs fell (chosen "
        f"{fixed(chosen, 2, sign=True)}, rejected {fixed(rejected, 2, sign=True)} nats per answer), so what it prefers "
        "now may be neither; raise dpo.anchor, or lower dpo.lr or dpo.epochs"
    ]
