"""A player as an ordinary PEFT adapter: its file as the run has it, or, of a chain of LoRAs, all of them as one.

B·A of several LoRAs is B·A of their matrices side by side: ranks add up, and nothing is approximated.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.errors import RunError
from sparring.export.bare import bare_logprobs, other_tokens
from sparring.export.compared import Compared
from sparring.export.merged import write_tokenizer
from sparring.export.source import Source
from sparring.files import read_json, readable, write_atomic
from sparring.models.adapters import CONFIG, WEIGHTS, read_adapter, write_adapter

_PART = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight$")


def write_player(source: Source, out: Path) -> None:
    """Write the player's adapter to the folder `out`, with its tokenizer. RunError for what is no adapter."""
    if source.whole:
        raise RunError("a player of method full is a whole model, and has no adapter; export it as merged")
    chain, name = source.player.adapters, base_name(source.config.model.base)
    if len(chain) == 1:
        shutil.copyfile(chain[0] / WEIGHTS, out / WEIGHTS)
        settings = {**read_json(chain[0] / CONFIG), "base_model_name_or_path": name}
        write_atomic(out / CONFIG, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    else:
        write_adapter(out, *joined(chain), name)
    readable(out / WEIGHTS)
    write_tokenizer(source, out)


def compare_adapter(source: Source, partial: Path, out: Path) -> tuple[Compared, Path, list[str]]:
    """(what was measured, where it lies, what else is wrong) of an adapter folder that will be `out`."""
    found = bare_logprobs(source.base, source.prompts, source.model, partial)
    labels = (source.label, source.plain, f"the base and the exported adapter in {source.model.dtype}")
    wrong = other_tokens(partial, source.renderer(), source.model, source.chat, source.config.data.system)
    values = (source.own, source.attached, found)
    count = len(source.prompts)
    return Compared("adapter", out, source.model.dtype, labels, values, source.before, count), partial, wrong


def base_name(given: str) -> str:
    """What an adapter calls its base: an id on the hub as it is, of a folder the last part, for nobody else has it."""
    folder = Path(given).expanduser()
    return folder.resolve().name if folder.is_dir() or given.startswith((".", "/", "~")) else given


def joined(chain: Sequence[Path]) -> tuple[Any, dict[str, Tensor]]:
    """(PEFT config, tensors) of one LoRA that is the sum of several; RunError if they do not add up."""
    halves: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    config: Any = None
    for folder in chain:
        config, tensors = read_adapter(folder)
        pairs: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            match = _PART.match(name)
            if match is None or config.use_dora:
                raise RunError(
                    f"this player is a chain of adapters (selfplay.hold), and {folder} is more than a LoRA on "
                    "matrices, so they are not one adapter; export it as merged"
                )
            pairs.setdefault(match["module"], {})[match["half"]] = tensor
        for module, pair in pairs.items():
            a_RI, b_OR = pair["A"].float(), pair["B"].float()
            down, up = halves.setdefault(module, ([], []))
            down.append(a_RI)
            up.append(b_OR * scale_of(config, module, a_RI.shape[0]))
    tensors = {}
    for module, (down, up) in halves.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.cat(down)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.cat(up, dim=1).contiguous()
    ranks = {module: sum(a.shape[0] for a in down) for module, (down, _) in halves.items()}
    return _sum_of(config, ranks), tensors


def _sum_of(config: Any, ranks: dict[str, int]) -> Any:
    """A PEFT config for LoRAs of these ranks that are scaled by 1. ranks: by module."""
    found = deepcopy(config)
    common = Counter(ranks.values()).most_common(1)[0][0]
    odd = {re.escape(module): rank for module, rank in ranks.items() if rank != common}
    found.r = found.lora_alpha = common
    found.rank_pattern, found.alpha_pattern = odd, dict(odd)
    found.use_rslora, found.init_lora_weights = False, True
    found.target_modules, found.layers_to_transform, found.exclude_modules = set(ranks), None, None
    return found


def scale_of(config: Any, module: str, r: int) -> float:
    """What PEFT multiplies the B·A of a module by."""
    alpha = next(
        (value for key, value in (config.alpha_pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)),
        config.lora_alpha,
    )
    return float(alpha / r**0.5 if config.use_rslora else alpha / r)
