"""What an adapter folder says of itself, and whether it fits a base: read from its files, without loading a model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sparring.config import ModelConfig
from sparring.errors import ModelError
from sparring.importing.fits import beside, misfit
from sparring.importing.found import TheirBase, find_their_base, read_about, sixteen_bits
from sparring.importing.words import Words, compare_words
from sparring.methods import Settings
from sparring.models.adapters import CONFIG, settings_of
from sparring.models.adapters import WEIGHTS as ADAPTER
from sparring.models.base import read_config
from sparring.models.player import ABOUT
from sparring.models.quantised import stored_as

# What tools leave in the README that they write: words → the tool.
TOOLS = {
    "github.com/huggingface/trl": "TRL",
    "unsloth": "Unsloth",
    "axolotl": "Axolotl",
    "llama-factory": "LLaMA-Factory",
}
_TRAINER = re.compile(r"trained with ([A-Z][A-Za-z0-9]*), a method|trained with ([A-Z]{3,5})\b")
_TRL = re.compile(r"^- TRL: (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Tensors:
    """What the weights are: shapes by name, how many numbers, in which types, bytes of the file, what is strange."""

    shapes: dict[str, tuple[int, ...]]
    numbers: int
    types: tuple[str, ...]
    size: int
    odd: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """An adapter, as it lies in its folder.

    settings  its method, as far as it says
    base      what it says of its base
    words     its tokenizer against the base's; None: the base was not looked at
    lines     (what, as it is) for people; notes: what is odd, one sentence each
    """

    folder: Path
    settings: Settings
    base: TheirBase
    tensors: Tensors
    words: Words | None
    lines: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """For people."""
        return "\n".join([f"{what:9s}  {said}" for what, said in self.lines] + [f"note: {note}" for note in self.notes])

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            "event": "adapter", "folder": str(self.folder), "method": self.settings.model_dump(mode="json"),
            "base": {"said": self.base.said, "found": self.base.name}, "tensors": len(self.tensors.shapes),
            "numbers": self.tensors.numbers, "types": list(self.tensors.types), "bytes": self.tensors.size,
            "notes": list(self.notes),
        }  # fmt: skip


def look(folder: Path, base_folder: Path | None, config: ModelConfig) -> Look:
    """Read an adapter's folder, and compare it with a base where one is given; loads no model, writes nothing.

    base_folder  the base's own folder; None: it is not on this machine
    Raises ModelError for an adapter that no player can be made of, or that does not fit the base.
    """
    about = read_about(folder)
    task = about.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"the adapter {folder} was trained for {task}, not as a language model (CAUSAL_LM), so it has no answers "
            "to give; use it with PEFT"
        )
    settings = settings_of(folder)
    tensors = read_shapes(folder)
    their = find_their_base(about, folder)
    words, notes = None, [*_odd(folder, about), *tensors.odd]
    if base_folder is not None:
        loaded = read_config(base_folder, config)
        if said := misfit(folder, about, tensors.shapes, loaded, config):
            raise ModelError(said)
        if found := beside(tensors.shapes, about):
            whole = ", ".join(found.values())
            notes.append(f"it holds whole matrices ({whole}); they are left out, and must be the base's")
        words = compare_words(folder, base_folder, config)
        notes += [*_quantised(stored_as(loaded), their), *words.notes]
    else:
        notes += _unpaired(tensors.shapes)
        if plain := sixteen_bits(their.said):
            notes.append(f"it was trained on a base in 4 bits; {plain} in 16 bits gives slightly other numbers")
    where = their.why if base_folder is None or config.base == their.name else f"compared with {config.base}"
    lines = _lines(folder, about, settings, tensors, f"{their.said or 'not said'}: {where}", words)
    return Look(folder, settings, their, tensors, words, tuple(lines), tuple(notes))


def read_shapes(folder: Path) -> Tensors:
    """Shapes and types of an adapter's tensors, which pass through memory one by one."""
    shapes: dict[str, tuple[int, ...]] = {}
    types: Counter[str] = Counter()
    broken, moved, lora = [], False, False
    try:
        with safe_open(folder / ADAPTER, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                tensor = file.get_tensor(name)
                shapes[name] = tuple(tensor.shape)
                types[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
                if not torch.isfinite(tensor).all():
                    broken.append(name)
                if "lora_B" in name:
                    lora, moved = True, moved or bool(tensor.any())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the adapter {folder} is damaged ({' '.join(str(error).split())[:200]}); fetch or save it again"
        ) from error
    if not shapes:
        raise ModelError(f"the adapter {folder} holds no tensors; save it again")
    if broken:
        raise ModelError(
            f"the adapter {folder} has NaN or infinite numbers in {broken[0]}"
            f"{f' and {len(broken) - 1} others' if len(broken) > 1 else ''}; give one that has not diverged"
        )
    odd = ("every B matrix is 0, so the adapter changes nothing: it was never trained",) if lora and not moved else ()
    size = (folder / ADAPTER).stat().st_size
    return Tensors(shapes, sum(types.values()), tuple(sorted(types)), size, odd)


# ---------------------------------------------------------------- in words


def _lines(
    folder: Path, about: dict[str, Any], settings: Settings, tensors: Tensors, base: str, words: Words | None
) -> list[tuple[str, str]]:
    count = f"{len(tensors.shapes)} tensors, {tensors.numbers:,} numbers in {' and '.join(tensors.types)}"
    lines = [
        ("adapter", f"{folder}: {count}, {tensors.size / 2**20:.1f} MiB"),
        ("made by", made_by(folder, about)),
        ("method", _method(about, settings)),
    ]
    if targets := _targets(about):
        lines.append(("targets", targets))
    lines.append(("base", base))
    if words is not None:
        lines.append(("tokenizer", words.said))
    elif any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        lines.append(("tokenizer", "beside it; not compared, for the base is not here"))
    return lines


def made_by(folder: Path, about: dict[str, Any]) -> str:
    """Which tool made the adapter, as far as its files tell."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        card = ""
    found = [tool for words, tool in TOOLS.items() if words in card.lower()]
    mapping = about.get("auto_mapping") or {}
    named = str(about.get("base_model_name_or_path") or "").startswith("unsloth/")
    if (mapping.get("unsloth_fixed") or named) and "Unsloth" not in found:
        found.append("Unsloth")
    if "TRL" in found:
        version, trainer = _TRL.search(card), _TRAINER.search(card)
        said = f"TRL {version[1]}" if version else "TRL"
        found[found.index("TRL")] = f"{said} ({trainer[1] or trainer[2]})" if trainer else said
    if (folder / ABOUT).exists():
        found.append("Sparring")
    version = about.get("peft_version")
    return ", ".join([*found, f"PEFT {version}" if version else "PEFT, which does not say its version"])


def _method(about: dict[str, Any], settings: Settings) -> str:
    said = [settings.summary]
    if "lora_alpha" in about:
        said.append(f"alpha {about['lora_alpha']:g}")
    for key in ("rank_pattern", "alpha_pattern"):
        if about.get(key):
            said.append(f"{key} for {', '.join(about[key])}")
    if about.get("modules_to_save"):
        said.append(f"whole beside it: {', '.join(about['modules_to_save'])}")
    return ", ".join(said)


def _targets(about: dict[str, Any]) -> str:
    found = about.get("target_modules")
    said = [f"the pattern {found}" if isinstance(found, str) else _last_names(found)] if found else []
    if about.get("target_parameters"):
        said.append(f"parameters {', '.join(about['target_parameters'])}")
    if (layers := about.get("layers_to_transform")) is not None:
        said.append(f"in layers {layers}")
    return "; ".join(said)


def _last_names(found: Sequence[str]) -> str:
    """Names of modules; of whole paths, as PEFT writes `all-linear` out, only their last parts, and how many."""
    last = sorted({name.rpartition(".")[2] for name in found})
    paths = sum("." in name for name in found)
    return ", ".join(last) + (f" ({paths} paths)" if paths else "")


def _odd(folder: Path, about: dict[str, Any]) -> list[str]:
    """What the folder holds beside an adapter, and settings that surprise."""
    notes = []
    state = folder / "trainer_state.json"
    if state.exists() or (folder / "optimizer.pt").exists():
        notes.append(f"it is a checkpoint of a Trainer{_progress(state)}; its optimiser is not read")
    elif checkpoints := sorted(folder.glob("checkpoint-*")):
        notes.append(f"checkpoints lie below it ({len(checkpoints)}); what is in the folder itself is taken")
    if others := sorted(
        path.parent.name for path in folder.glob(f"*/{CONFIG}") if not path.parent.name.startswith("checkpoint-")
    ):
        notes.append(f"other adapters lie below it ({', '.join(others)}); what is in the folder itself is taken")
    if (folder / "config.json").exists():
        notes.append("a config.json lies beside it, of a whole model; the adapter is taken")
    if about.get("inference_mode") is False:
        notes.append("it was saved as if training went on (inference_mode false), which changes nothing here")
    if unknown := _unknown(about):
        notes.append(
            f"its config has {', '.join(unknown)}, which the PEFT here does not know: it was made by a later one, and "
            "may be more than is read"
        )
    if about.get("modules_to_save"):
        notes.append("modules trained whole keep it beside its base: it cannot be merged in place")
    return notes


def _unknown(about: dict[str, Any]) -> list[str]:
    """Settings in force that PEFT drops when it reads the config, because it does not know them."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(about["peft_type"])
    known = {field.name for field in fields(kind)} if kind is not None else set(about)
    return sorted(key for key, value in about.items() if value and key not in known)


def _progress(state: Path) -> str:
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
        return f" at step {found['global_step']} of {found['max_steps']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _quantised(stored: str, their: TheirBase) -> list[str]:
    if stored:
        return [
            f"the base comes quantised ({stored}); the adapter runs on it, but to merge it the base in 16 bits is "
            "needed (--base)"
        ]
    if plain := sixteen_bits(their.said):
        return [f"it was trained on {their.said} in 4 bits; on {plain} in 16 bits its numbers differ slightly"]
    return []


def _unpaired(shapes: Sequence[str] | dict[str, tuple[int, ...]]) -> list[str]:
    """A matrix of a LoRA whose other half is missing, which a base is not needed to see."""
    for name in shapes:
        other = name.replace("lora_A", "lora_?").replace("lora_B", "lora_A").replace("lora_?", "lora_B")
        if other not in shapes:
            return [f"it has {name} but no {other}: it is damaged, and will be refused"]
    return []
