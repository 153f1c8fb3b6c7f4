"""`sparring merge`: a player as an ordinary model folder, its adapters added to the base's weights in 16 or 32 bits.

Never to quantised weights: a run on a quantised base is merged into the base as it is in its folder. What is written is
loaded again and measured on the run's held-out answers before it gets its name.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from sparring.browse import Opened, open_player, player_name
from sparring.config import ModelConfig
from sparring.data.pairs import Prompt, Rows
from sparring.errors import InputError, LawBroken, ModelError, RunError
from sparring.evaluation.nll import real_logprobs
from sparring.files import readable, remove, write_atomic
from sparring.methods import method_of
from sparring.models.adapters import settings_of
from sparring.models.base import DTYPES, Base, find_base, load_base, load_renderer, read_config
from sparring.models.layout import NEAR
from sparring.models.players import Player, Ring
from sparring.models.quantised import described, stored_as
from sparring.models.whole import WEIGHTS as WHOLE

# How far the held-out NLL of the written folder may be from that of base and adapter side by side, in nats per token: a
# fifth of what single tokens may differ by (root mean square) between two ways of computing one model's log-probs,
# since this is a mean over many. On the laboratory it is 7e-9 in fp32, 3e-5 in fp16, 2e-4 in bf16.
TOLERANCE = {name: NEAR[dtype] / 5 for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Merged:
    """What was measured: log p of every held-out answer in nats under the run's player, base + adapter, the folder."""

    out: Path
    dtype: str
    labels: tuple[str, str, str]
    values: tuple[list[float], list[float], list[float]]
    tokens: int

    @property
    def off(self) -> float:
        """How far the folder's NLL per token is from that of base and adapter."""
        return self.nll(2) - self.nll(1)

    def nll(self, which: int) -> float:
        """Per token, in nats."""
        return -sum(self.values[which]) / self.tokens

    def largest(self, which: int) -> float:
        """The largest |Δ log p| of an answer, against what stands before."""
        mine, theirs = self.values[which], self.values[which - 1]
        return max(abs(a - b) for a, b in zip(mine, theirs, strict=True))

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(header, rows) for the terminal; differences are to the row above."""
        rows = [[self.labels[0], f"{self.nll(0):.6f}", "–", "–"]]
        for which in (1, 2):
            change = self.nll(which) - self.nll(which - 1)
            rows.append([self.labels[which], f"{self.nll(which):.6f}", f"{change:+.2g}", f"{self.largest(which):.2g}"])
        return ["", "held-out NLL per token", "Δ to the line above", "largest |Δ log p| of an answer"], rows

    def text(self) -> str:
        """What came of it, in a sentence or two."""
        said = (
            f"merged: {self.out} ({self.dtype}); its held-out NLL is {self.off:+.2g} nats per token from that of "
            f"{self.labels[1]} (allowed: {TOLERANCE[self.dtype]:g})"
        )
        if self.dtype != "fp32":
            said += (
                f"\nThat is the rounding of merged weights to {self.dtype}; --dtype fp32 has none, at twice the size"
            )
        return said

    def facts(self) -> dict[str, Any]:
        """For machines."""
        names = ("player", "attached", "merged")
        return {
            "event": "merged", "out": str(self.out), "dtype": self.dtype, "tolerance": TOLERANCE[self.dtype],
            "nll": {name: self.nll(which) for which, name in enumerate(names)},
            "largest": {name: self.largest(which) for which, name in enumerate(names) if which},
        }  # fmt: skip


def merge_run(run: Path, out: Path, player: str = "best", dtype: str | None = None, force: bool = False) -> Merged:
    """Merge a player of a run (best, sft, or an iteration's number) and write it to `out`.

    dtype  fp32, bf16 or fp16; None: what the run computed in
    force  take the place of a model folder that is there
    Raises InputError for what cannot be merged or written, LawBroken (12) if what was written is not the player.
    """
    _free(out, force)
    name = player_name(run, player)
    if name == "base":
        raise InputError("the base has no adapter to merge; give --iteration best, sft, or an iteration's number")
    opened = open_player(run, name)
    folder = _mergeable(opened)
    prompts: Sequence[Prompt] = Rows([run / "data" / "eval.arrow"], Prompt)[:]
    tokens = opened.config.optimiser.micro_batch_tokens
    dtype = dtype or next(key for key, value in DTYPES.items() if value == opened.ring.base.dtype)
    own = real_logprobs(opened.ring.seat(opened.player), opened.ring.base, prompts, tokens)
    first, fingerprint = (
        _label(opened.ring.base, opened.config.model, "" if opened.ring.row.whole else " + adapter"),
        opened.ring.base.fingerprint,
    )
    config, who, chat = opened.config, opened.player, opened.chat
    del opened  # one base in memory at a time
    gc.collect()
    plain = config.model.model_copy(update={"quantise": "none", "dtype": dtype})
    partial = out.with_name(out.name + ".partial")
    remove(partial)
    base = load_base(folder, plain, load_renderer(folder, plain))
    # the one place where a player sits on another base than it was trained on: the same one, before it was quantised
    ring = Ring(replace(base, fingerprint=fingerprint), config.method, config.model.base)
    attached = real_logprobs(ring.seat(who), base, prompts, tokens)
    _write(ring, who, folder, partial, dtype, chat)
    whole = ring.row.whole
    del ring, base
    gc.collect()
    written = load_base(partial, plain, load_renderer(folder, plain))
    merged = real_logprobs(written.model, written, prompts, tokens)
    kind = "whole model" if whole else "base + adapter"
    labels = (first, f"{kind} in {dtype}", f"the merged folder in {dtype}")
    found = Merged(out, dtype, labels, (own, attached, merged), sum(len(p.real_ids) for p in prompts))
    if not abs(found.off) <= TOLERANCE[dtype]:
        shutil.rmtree(partial)
        raise LawBroken(
            f"law 12: the merged folder's held-out NLL per token is {found.nll(2):.6f}, that of base and adapter "
            f"{found.nll(1):.6f}: {found.off:+.2g} off, allowed in {dtype} is {TOLERANCE[dtype]:g}; nothing was written"
            + ("" if dtype == "fp32" else "; try --dtype fp32")
        )
    remove(out)
    os.rename(partial, out)
    return found


def _free(out: Path, force: bool) -> None:
    """Refuse a place that is taken, before anything is loaded."""
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; make it, or give another --out")
    if out.exists() and not force:
        raise InputError(f"{out} exists; give another --out, or --force to replace it")
    if out.exists() and not (out.is_dir() and ((out / "config.json").exists() or not any(out.iterdir()))):
        raise InputError(f"{out} is not a model's folder, so it is not replaced; give another --out")


def _mergeable(opened: Opened) -> Path:
    """The base's folder, if this player can be merged into it."""
    if not opened.player.adapters:
        raise RunError("this player is the base itself (sft.epochs was 0), so there is nothing to merge")
    for adapter in opened.player.adapters:
        if (adapter / WHOLE).exists():
            continue  # it is a model already, and is only written with a tokenizer
        method = settings_of(adapter)
        if not method_of(method).merges:
            raise RunError(
                f"{adapter} is an adapter of method {method.name}, which is no change of the base's weights and cannot "
                "be merged; use it beside the base, with PEFT (docs/methods.md)"
            )
    folder = find_base(opened.config.model)
    if kind := stored_as(read_config(folder, opened.config.model)):
        raise ModelError(
            f"model.base {opened.config.model.base} comes quantised ({kind}), and what it was before is not in its "
            "folder; merge into the base in 16 bits that it was made from, with PEFT"
        )
    return folder


def _label(base: Base, config: ModelConfig, adapter: str) -> str:
    dtype = next(name for name, value in DTYPES.items() if value == base.dtype)
    held = f"{described(base.quantised, config)} base" if base.quantised else "base"
    return f"the run's player: {held}{adapter} in {dtype}"


def _write(ring: Ring, player: Player, source: Path, out: Path, dtype: str, chat: bool) -> None:
    """Weights, and all else as it is in the base's folder; the tokenizer with the template of the run's chats."""
    model = ring.seat(player, merged=True)
    if isinstance(model, PeftModel):
        raise RunError(
            "this player trains modules whole, or adapts the embedding or the head, which are one matrix in this base; "
            "that cannot be merged; use it beside the base, with PEFT"
        )
    model.save_pretrained(out)
    for file in out.glob("*.safetensors"):
        readable(file)
    for pattern in ("generation_config.json", "*.py", "LICENSE*"):
        for file in source.glob(pattern):
            shutil.copyfile(file, out / file.name)
    # not transformers' own, in which dropout is off and the attention is this project's
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    key = "torch_dtype" if "torch_dtype" in settings else "dtype"
    settings[key] = str(DTYPES[dtype]).removeprefix("torch.")
    write_atomic(out / "config.json", json.dumps(settings, indent=2) + "\n")
    tokenizer = ring.base.renderer.tokenizer
    if chat:
        tokenizer.chat_template = ring.base.renderer.portable
    tokenizer.save_pretrained(out)
