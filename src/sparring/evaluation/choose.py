"""Which player to hand over: the best on held-out data, theta_0 included."""

from __future__ import annotations

import json
from pathlib import Path

from sparring.files import write_atomic
from sparring.run import Event, Phase
from sparring.session import Session


def choose(session: Session, folder: Path, *judged: Phase) -> Event:
    """Choose the judged player with the lowest `evaluation.select`; ties go to the earlier one.

    judged  the judgements of theta_0, theta_1, …; writes best.json with the values and the reason.
    """
    if not session.crew.writes:
        return {}
    metric = session.config.evaluation.select
    values = {phase.name.removesuffix("-scores").removesuffix("/scores"): _value(phase, metric) for phase in judged}
    best = min(values, key=lambda name: values[name])
    last = list(values)[-1]
    label = "θ_0 (SFT)" if best == "sft" else f"θ_{int(best) + 1}"
    reason = f"{label} has the lowest {_WORDS[metric]} of {len(values)} players ({values[best]:.4f})"
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


_WORDS = {"nll": "held-out NLL per token", "exact_kl": "exact KL to the data"}


def _value(phase: Phase, metric: str) -> float:
    facts = phase.facts
    return float(facts["nll"] if metric == "nll" else facts["exact"]["kl"])
