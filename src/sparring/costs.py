"""What a player costs, from its run folder: parameters, bytes on disk, seconds, memory, speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparring.report.records import Row, Run, number

Costs = dict[str, Any]
PARTS = {"sft": "sft", "played": "play", "pairs": "score", "rewards": "score", "scored": "score", "player": "learn"}
WEIGHTS = "*.safetensors"


def costs_of(run: Run) -> Costs:
    """The costs of one run. What the run does not say is None.

    trainable                            parameters that its last player trained
    disk_bytes                           of a player's weights, the largest that the run keeps
    sft_, play_, score_, learn_seconds   judging is left out
    memory_bytes, memory_of              the highest peak of these phases, and what it is of (`peak.Peak`)
    play_tokens_per_second               sampled tokens
    learn_tokens_per_second              trained on, in self-play if there was any, else in SFT; no virtual ones
    """
    phases: dict[str, list[Row]] = {part: [] for part in PARTS.values()}
    for name, row in run.phases.items():
        if (part := PARTS.get(name.split("/")[-1])) is not None:
            phases[part].append(row)
    learnt = phases["learn"] or phases["sft"]
    memory = _highest([row.get("memory") for rows in phases.values() for row in rows])
    return {
        "trainable": number(learnt[-1], "trainable") if learnt else None,
        "disk_bytes": _disk(run),
        **{f"{part}_seconds": _sum(rows, "seconds") for part, rows in phases.items()},
        "memory_bytes": memory.get("bytes"),
        "memory_of": memory.get("of"),
        "play_tokens_per_second": _rate(phases["play"], "sampled"),
        "learn_tokens_per_second": _rate(learnt, "tokens", "virtual"),
    }


def mean_costs(found: Sequence[Costs]) -> Costs:
    """The mean over seeds; of memory the highest."""
    memory = _highest([{"bytes": one["memory_bytes"], "of": one["memory_of"]} for one in found])
    means = {key: _mean([one[key] for one in found]) for key in found[0] if not key.startswith("memory")}
    return {**means, "memory_bytes": memory.get("bytes"), "memory_of": memory.get("of")}


def _disk(run: Run) -> int | None:
    folders = [run.folder / name for name in run.phases if name == "sft" or name.endswith("/player")]
    sizes = [sum(file.stat().st_size for file in folder.glob(WEIGHTS)) for folder in folders]
    return max(sizes, default=None)


def _highest(peaks: Sequence[Any]) -> Row:
    """The highest peak, empty if there is none; a GPU's counts before a process's, which says little beside it."""
    known = [peak for peak in peaks if isinstance(peak, dict) and number(peak, "bytes") is not None]
    on_gpu = [peak for peak in known if peak.get("of") == "GPU"]
    return max(on_gpu or known, key=lambda peak: peak["bytes"], default={})


def _sum(rows: Sequence[Row], key: str) -> float:
    return sum(number(row, key) or 0.0 for row in rows)


def _rate(rows: Sequence[Row], key: str, without: str = "") -> float | None:
    done, seconds = _sum(rows, key) - _sum(rows, without), _sum(rows, "seconds")
    return done / seconds if done and seconds else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
