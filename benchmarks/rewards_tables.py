"""The tables of docs/rewards.md in Markdown, from the numbers of benchmarks/rewards_laboratory.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparring.report.tables import fixed, interval

Row = dict[str, Any]


def between(row: Row, digits: int = 3, sign: bool = False, name: str = "mean") -> str:
    """A mean with its interval."""
    low, high = (row.get(end if name == "mean" else f"{name}_{end}") for end in ("low", "high"))
    return f"{fixed(row[name], digits, sign)} {interval(low, high, digits, sign)}".rstrip()


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    for cells in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(cells) + " |")


def show_models(rows: Sequence[Row]) -> None:
    heads = [
        "reward model from",
        "held-out accuracy",
        "by validity alone",
        "by p_data",
        "at most",
        "valid over invalid",
    ]
    lines = []
    for row in rows:
        allowed = row["allowed"]
        known = [between(allowed[name]) if name in allowed else "–" for name in ("validity", "p_data", "ratio")]
        lines.append([f"{row['name']} ({row['pairs']} pairs)", between(row["labels"]), *known, between(row["order"])])
    show("Reward models", heads, lines)


def show_stop(found: Row) -> None:
    lines = []
    for check in found["looked"]["checks"]:
        stop = (found["stopped"]["stop"] or {}).get("step")
        mark = " (stopped)" if check["step"] == stop else ""
        gap = between(check["reward_difference"], sign=True)
        lines.append([f"{check['step']}{mark}", fixed(check["reward"], 3), gap, fixed(check["heldout_nll"])])
    show("Use 1: stop", ["step", "scorer's mean", "less its start's", "held-out NLL"], lines)


def show_players(title: str, rows: Sequence[Row]) -> None:
    lines = []
    for row in rows:
        gap = between(row["difference"], sign=True) if row["difference"] else "–"
        star = " ★" if row["best"] else ""
        numbers = [between(row, name="reward"), gap, between(row, 4, name="nll"), fixed(row["kl_start"], 3)]
        lines.append([row["label"] + star, *numbers, fixed(row["exact"]["valid_mass"], 3)])
    show(title, ["player", "scorer's mean", "less θ_0's", "held-out NLL", "KL to θ_0", "valid mass, exact"], lines)


def show_curves(found: dict[str, list[Row]], lost: dict[str, list[float]]) -> None:
    some = [row["n"] for row in next(iter(found.values()))]
    lines = []
    for name, curve in found.items():
        lines.append(
            [
                name,
                *(fixed(row["valid"], 3) for row in curve),
                between(curve[-1], 3, True, "valid_gain"),
                f"{lost[name][1]:.1%}",
            ]
        )
    heads = [f"n = {n}, KL ≤ {fixed(row['kl'], 2)}" for n, row in zip(some, next(iter(found.values())), strict=True)]
    show(
        "Use 3: valid answers among the best of n", ["chosen by", *heads, f"n = {some[-1]} less n = 1", "strays"], lines
    )
    print(f"\nStrays among all answers: {next(iter(lost.values()))[0]:.1%}.")
