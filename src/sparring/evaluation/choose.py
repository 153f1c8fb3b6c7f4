"""Which player to hand over: the best on held-out data, theta_0 included."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparring.files import write_atomic
from sparring.models.adapters import WEIGHTS as ADAPTER
from sparring.models.whole import WEIGHTS as WHOLE
from sparring.run import Event, Phase
from sparring.session import Session


def choose(session: Session, folder: Path, *judged: Phase, metric: str | None = None) -> Event:
    """Choose the judged player that is best by `metric`, or `evaluation.select`; ties go to the earlier one.

    judged  the judgements of theta_0, theta_1, … that hold the metric; writes best.json with the values and the reason.
    """
    if not session.crew.writes:
        return {}
    metric = metric or _selected(session)
    values, best = _ranked(judged, metric)
    extreme, words, _ = _WORDS[metric]
    last = list(values)[-1]
    label = label_of(best, session.first)
    if values[best] is None:
        reason = f"{label} is the only player"
    else:
        reason = f"{label} has the {extreme} {words} of {len(values)} players ({values[best]:.4f})"
    if best != last:
        reason += f"; the later players, up to {values[last]:.4f} at the end, were rolled back"
    content = {
        "player": best,
        "label": label,
        "metric": metric,
        "value": values[best],
        "why": reason,
        "rolled_back": best != last,
        "values": values,
    }
    write_atomic(folder / "best.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return {"player": best}


def tidy(session: Session, judged: list[Phase], players: dict[str, Phase], metric: str | None = None) -> None:
    """Remove the weights of players that `selfplay.keep` does not keep: not theta_0, not the best, not the last."""
    keep = session.config.selfplay.keep
    if keep is not None:
        _, best = _ranked(judged, metric or _selected(session))
        for name in list(players)[1:-keep]:
            for weights in (ADAPTER, WHOLE) if name != best else ():
                session.run.forget(players[name], weights)


def _selected(session: Session) -> str:
    """The metric of `evaluation.select`."""
    return metric_of(session.config.evaluation.select)


def metric_of(select: str) -> str:
    """The name, among a judgement's numbers, of what a setting chooses by."""
    return "reward" if select == "scorer" else select


def _ranked(judged: Sequence[Phase], metric: str) -> tuple[dict[str, float | None], str]:
    """(the metric by player, the best player)."""
    values = {re.sub("[-/](scores|valued)$", "", phase.name): _value(phase, metric) for phase in judged}
    _, _, pick = _WORDS[metric]
    return values, pick(values, key=lambda name: values[name]) if len(values) > 1 else next(iter(values))


def label_of(player: str, first: str) -> str:
    """A player's name as it is shown: `first` for θ_0, "θ_1"."""
    return first if player == "sft" else f"θ_{int(player) + 1}"


_WORDS: dict[str, tuple[str, str, Any]] = {
    "nll": ("lowest", "held-out NLL per token", min),
    "exact_kl": ("lowest", "exact KL to the data", min),
    "match": ("highest", "share of answers that match", max),
    "reward": ("highest", "mean held-out reward", max),
}


def _value(phase: Phase, metric: str) -> float | None:
    """The metric's value; None where thinking before the answer leaves no likelihood."""
    facts = phase.facts
    value = (facts["exact"] or {}).get("kl") if metric == "exact_kl" else facts[metric]
    return None if value is None else float(value)
