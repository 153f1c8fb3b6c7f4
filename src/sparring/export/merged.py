"""`sparring merge`: a player as an ordinary model folder, its adapters added to the base's weights in 16 or 32 bits.

Never to quantised weights: a run on a quantised base is merged into the base as it is in its folder. What is written is
loaded again by transformers alone and measured on the run's held-out answers before it gets its name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from peft import PeftModel

from sparring.errors import RunError
from sparring.export.bare import GENERATION, bare_logprobs, other_tokens
from sparring.export.card import write_card
from sparring.export.compared import Compared, confirm
from sparring.export.places import free, held, made
from sparring.export.source import Source, base_of_run, take
from sparring.files import readable, write_atomic
from sparring.models.base import DTYPES


def merge_run(
    run: Path, out: Path, player: str = "best", dtype: str | None = None, force: bool = False, within: bool = False
) -> Compared:
    """Merge a player of a run (best, sft, or an iteration's number) and write it to `out`, with a model card.

    dtype   fp32, bf16 or fp16; None: what the run computed in
    force   take the place of an export that is there
    within  `out` is a place in a run's folder that is meant for it
    Raises InputError for what cannot be merged or written, LawBroken (12) if what was written is not the player; that
    is then in `out`.unverified.
    """
    free(out, force, base_of_run(run), within)
    with held(out):
        source = take(run, player, dtype)
        with made(out, source.mark) as partial:
            write_merged(source, partial)
            source.release()
            found = confirm(*compare_merged(source, partial, out))
            write_card(run, source.name, partial, "merged", [found.said()], out.name)
    return found


def compare_merged(source: Source, partial: Path, out: Path) -> tuple[Compared, Path, list[str]]:
    """(what was measured, where it lies, what else is wrong) of a merged folder that will be `out`."""
    values = (source.own, source.attached, bare_logprobs(partial, source.prompts, source.model))
    labels = (source.label, source.plain, f"the merged folder in {source.model.dtype}")
    wrong = other_tokens(partial, source.renderer(), source.model, source.chat, source.config.data.system)
    count = len(source.prompts)
    return Compared("merged", out, source.model.dtype, labels, values, source.before, count), partial, wrong


def write_merged(source: Source, out: Path) -> None:
    """Weights, and all else as it is in the base's folder; the tokenizer with the template of the run's chats."""
    model = source.ring.seat(source.player, merged=True)
    if isinstance(model, PeftModel):
        raise RunError(
            "this player trains modules whole, or adapts the embedding or the head, which are one matrix in this base; "
            "that cannot be merged; use it beside the base, with PEFT"
        )
    model.save_pretrained(out)
    for file in out.glob("*.safetensors"):
        readable(file)
    for pattern in ("*.py", "LICENSE*"):
        for file in source.base.glob(pattern):
            shutil.copyfile(file, out / file.name)
    # not transformers' own, in which dropout is off and the attention is this project's
    settings = json.loads((source.base / "config.json").read_text(encoding="utf-8"))
    key = "torch_dtype" if "torch_dtype" in settings else "dtype"
    settings[key] = str(DTYPES[source.model.dtype]).removeprefix("torch.")
    settings.pop("_name_or_path", None)  # a path of whoever made the base
    write_atomic(out / "config.json", json.dumps(settings, indent=2) + "\n")
    generation = source.base / GENERATION
    known = json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else {}
    ends = {"eos_token_id": list(source.renderer().end_ids)}  # which may be more than the base's: the template's too
    write_atomic(out / GENERATION, json.dumps({**known, **ends}, indent=2) + "\n")
    write_tokenizer(source, out)


def write_tokenizer(source: Source, out: Path) -> None:
    """The base's tokenizer, with the template that the run wrote its chats with."""
    renderer = source.renderer()
    if source.chat:
        renderer.tokenizer.chat_template = renderer.portable
    renderer.tokenizer.save_pretrained(out)
