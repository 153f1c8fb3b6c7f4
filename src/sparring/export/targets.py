"""What `sparring export --to` can be asked for, read before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparring.errors import InputError, nearest
from sparring.methods import Method

# What matrices are written in as GGUF, by the gguf library's names of types and files.
KINDS = {
    "f32": ("F32", "ALL_F32"),
    "f16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
    "q5_1": ("Q5_1", "MOSTLY_Q5_1"),
    "q5_0": ("Q5_0", "MOSTLY_Q5_0"),
    "q4_1": ("Q4_1", "MOSTLY_Q4_1"),
    "q4_0": ("Q4_0", "MOSTLY_Q4_0"),
}
FORMATS = ("adapter", "merged", "gguf", "ollama")
LORA = "lora"  # gguf:lora, the adapter alone
DEFAULT = "q8_0"


@dataclass(frozen=True, slots=True)
class Targets:
    """What is to be written. gguf: kinds of files, in the order that was asked for; lora: the adapter alone as GGUF."""

    adapter: bool = False
    merged: bool = False
    gguf: tuple[str, ...] = ()
    lora: bool = False
    ollama: bool = False

    @property
    def folders(self) -> list[str]:
        """The folders that this comes to."""
        there = {"adapter": self.adapter, "merged": self.merged, "gguf": bool(self.gguf), "gguf-lora": self.lora}
        return [name for name, wanted in there.items() if wanted]

    @property
    def merges(self) -> bool:
        """Whether a merged model is needed, kept or not."""
        return self.merged or self.lora or bool(self.gguf)


def read_targets(words: str) -> Targets:
    """`adapter,merged,gguf:q4_0,ollama` as Targets. Raises InputError naming the nearest for an unknown word."""
    chosen: set[str] = set()
    kinds: list[str] = []
    for word in (part.strip().lower() for part in words.split(",")):
        name, _, kind = word.partition(":")
        if name not in FORMATS:
            raise InputError(f'--to "{word}" is not known; {nearest(word, FORMATS)}')
        if name != "gguf" and kind:
            raise InputError(f'--to "{word}": {name} has no kinds; give {name}')
        kind = kind or DEFAULT
        if re.match(r"i?q\d_(k|xs|xxs|s|m|nl)", kind):
            raise InputError(
                f"{kind} is not written here; export gguf:f16, and make it with llama.cpp's llama-quantize"
            )
        if kind not in (*KINDS, LORA):
            raise InputError(f'GGUF kind "{kind}" is not known; {nearest(kind, (*KINDS, LORA))}')
        if name == "gguf" and kind != LORA:
            kinds += [] if kind in kinds else [kind]
        else:
            chosen.add(LORA if name == "gguf" else name)
    if "ollama" in chosen and not kinds:
        kinds.append(DEFAULT)  # a Modelfile stands beside the file that it is of
    return Targets("adapter" in chosen, "merged" in chosen, tuple(kinds), LORA in chosen, "ollama" in chosen)


def refuse(targets: Targets, row: Method, beside: bool) -> None:
    """Raise InputError for what a player of this method cannot be. beside: modules are trained whole beside it."""
    if targets.adapter and row.whole:
        raise InputError("a player of method full is a whole model, with no adapter; give --to merged or gguf")
    if targets.merged and not (row.merges or row.whole):
        raise InputError(
            f"a player of method {row.name} is no change of the base's weights, so it cannot be merged; give "
            "--to adapter"
        )
    if (targets.gguf or targets.lora) and row.gguf == "no":
        raise InputError(f"a player of method {row.name} cannot be had as GGUF; give --to adapter")
    if targets.merges and beside:
        raise InputError(
            "this player trains modules whole beside its adapter (method.modules_to_save), which cannot be merged; "
            "give --to adapter"
        )
    if targets.lora and row.gguf != "adapter":
        raise InputError(f"a player of method {row.name} is no plain LoRA; give --to gguf:f16 in place of gguf:lora")
