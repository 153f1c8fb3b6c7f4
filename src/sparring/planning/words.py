"""The plan in words: what every verb's plan says alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparring.config import Config
from sparring.console import clock
from sparring.data.messages import Renderer, choose_template
from sparring.data.pairs import Preference, Prompt
from sparring.job import Found, run_folder
from sparring.models.base import Base
from sparring.run import Run

SHOWN = 900  # characters of a prompt or an answer
FEW = 30  # held-out rows


@dataclass(frozen=True, slots=True)
class Draft:
    """A verb's part of the plan.

    about     lines under what is said of every run: what is learnt from, and by what measure
    steps     lines: what would happen, one after the other
    example   one example of what is learnt from
    lengths   tokens, by what they are of
    held_out  rows to judge by
    notes     what a reader must not miss
    """

    about: list[str]
    steps: list[str]
    example: str
    lengths: dict[str, dict[str, int]]
    estimate: dict[str, Any]
    held_out: int
    notes: list[str] = field(default_factory=list)


def head(found: Found, base: Base, parameters: int, trainable: int) -> list[str]:
    """Run, base, template, data, layout, method."""
    config = found.config
    _, template = choose_template(config.model.template, base.renderer.tokenizer)
    ends = ", ".join(repr(base.renderer.tokenizer.decode([token])) for token in base.renderer.end_ids)
    return [
        f"run       {where(found)}",
        f"base      {config.model.base}: {parameters:,} parameters, {str(base.dtype).removeprefix('torch.')} on "
        f"{base.device}, context {base.context}",
        f"template  {template}; an answer ends with {ends}",
        f"data      {found.loaded.description}",
        f"layout    {_layout(base)}",
        f"method    {config.method.summary}: {trainable:,} trained parameters",
    ]


def where(found: Found) -> str:
    """The run folder, and whether it is there already."""
    folder = run_folder(found.config)
    if not (folder / "run.lock.yaml").exists():
        return str(folder)
    difference = Run(folder).difference(found.same)
    return f"{folder} (exists, made with {difference})" if difference else f"{folder} (exists: it would go on)"


def _layout(base: Base) -> str:
    """How answers are scored and trained on, found by numbers on this base."""
    if base.layout.packed:
        return "packed: a prompt is computed once for all its answers, without padding"
    return f"a padded row for each answer; they cannot share their prompt: {base.layout.why}"


def first(config: Config, steps: int) -> str:
    """How θ_0 comes about. steps: of fine-tuning."""
    if config.start is not None:
        return f"1. no SFT: θ_0 is the player in {config.start}"
    said = f"{steps} steps of {config.sft.batch_size}"
    return f"1. SFT: {config.sft.epochs:g} epochs, {said}, lr {config.sft.lr:g} → θ_0"


def pairs_line(train: Sequence[Preference], held: Sequence[Preference], bad: Sequence[str]) -> str:
    """How many pairs, ties and bad rows there are."""
    ties = sum(1 for row in train if row.weight != 1) // 2
    told = f"; {ties} ties among the first are told as two halves each" if ties else ""
    left = f"; {len(bad)} bad rows left out, the first: {bad[0]}" if bad else ""
    prompts = len({tuple(row.prompt_ids) for row in train})
    return f"pairs     {len(train)} of {prompts} prompts to learn from, {len(held)} held out{told}{left}"


def counted(counts: dict[str, int], lengths: dict[str, dict[str, int]]) -> str:
    lines = ["counts    " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count)]
    for name, quantiles in lengths.items():
        shown = "  ".join(f"{key} {value}" for key, value in quantiles.items())
        lines.append(f"{name + ' tokens':15s}  {shown}")
    return "\n".join(lines)


def masked(renderer: Renderer, prompt: Prompt) -> str:
    """One example as the model sees it: what it is asked, and between ⟦ and ⟧ what it is trained on."""
    asked, trained = as_read(renderer, prompt.prompt_ids), as_read(renderer, prompt.real_ids)
    end = "" if prompt.real_ended else "  (cut: no end token)"
    text = f"{shorten(asked)}⟦{shorten(trained)}⟧{end}"
    return f"one example ({prompt.source}); only what stands between ⟦ and ⟧ is trained on\n{indent(text)}"


def compared(renderer: Renderer, pair: Preference) -> str:
    """One pair as the model sees it: what it is asked, and both answers, marked."""
    asked = shorten(as_read(renderer, pair.prompt_ids))
    sides = [shorten(as_read(renderer, ids)) for ids in (pair.chosen_ids, pair.rejected_ids)]
    votes = f"; people said {', '.join(f'{vote:g}' for vote in pair.votes)}" if pair.votes else ""
    half = "; a tie, this way round and the other, each with weight ½" if pair.weight != 1 else ""
    return (
        f"one pair ({pair.source}); ⟦+ ⟧ is the chosen answer, ⟦− ⟧ the rejected one{votes}{half}\n"
        f"{indent(f'{asked}⟦+{sides[0]}⟧')}\n{indent(f'{asked}⟦−{sides[1]}⟧')}"
    )


def as_read(renderer: Renderer, ids: Sequence[int]) -> str:
    return str(renderer.tokenizer.decode(list(ids), skip_special_tokens=False))


def costs(estimate: dict[str, Any]) -> str:
    seconds = estimate["seconds"]
    again = "; layers are computed again in the backward pass, for lack of memory" if estimate["checkpointing"] else ""
    parts = ", ".join(f"{name} {clock(value)}" for name, value in seconds.items())
    return (
        f"estimate  time {clock(sum(seconds.values()))} ({parts}), from a few timed passes on this machine\n"
        f"          memory about {estimate['memory_bytes'] / 2**20:,.0f} MiB, of which the base "
        f"{estimate['base_bytes'] / 2**20:,.0f}{again}\n"
        f"          disk about {estimate['disk_bytes'] / 2**20:,.1f} MiB"
    )


def shorten(text: str, limit: int = SHOWN) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


def quantiles(values: Sequence[int]) -> dict[str, int]:
    marks = {"min": 0, "25 %": 25, "median": 50, "75 %": 75, "95 %": 95, "max": 100}
    return {name: int(np.percentile(values, mark)) for name, mark in marks.items()}


def lengths_of(train: Sequence[Prompt]) -> dict[str, dict[str, int]]:
    """Of examples."""
    return {
        "prompt": quantiles([len(p.prompt_ids) for p in train]),
        "answer": quantiles([len(p.real_ids) for p in train]),
    }


def pair_lengths(train: Sequence[Preference]) -> dict[str, dict[str, int]]:
    """Of preference pairs."""
    return {
        "prompt": quantiles([len(p.prompt_ids) for p in train]),
        "chosen": quantiles([len(p.chosen_ids) for p in train]),
        "rejected": quantiles([len(p.rejected_ids) for p in train]),
    }
