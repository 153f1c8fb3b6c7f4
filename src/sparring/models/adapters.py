"""Adapter folders: ordinary PEFT adapters, read from wherever they were made, written the same to the byte.

PEFT's own `save_pretrained` puts sets in an order that changes from run to run, and the base's path into its
README; so adapters are written here. They load with PEFT as usual.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sparring.errors import ModelError
from sparring.files import read_json, write_atomic, written
from sparring.methods import METHODS, Settings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def fingerprint_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes of tensors, by name."""
    return fingerprint_each((name, tensors[name]) for name in sorted(tensors))


def fingerprint_each(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The same of tensors that come one by one, in the order of their names."""
    total = hashlib.sha256()
    for name, given in tensors:
        tensor = given.detach().to("cpu").contiguous()
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; ModelError if it is damaged or missing."""
    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the adapter {path.parent} is damaged ({' '.join(str(error).split())[:200]}); if a run made it, remove "
            "the folder and run again"
        ) from error
    return found


def settings_of(folder: Path) -> Settings:
    """The section `method` that an adapter folder was made with, as far as it says; ModelError if of no method."""
    about = _about(folder)
    _plain_lora(about, folder)
    for row in METHODS.values():
        found = row.read(about)
        if found is None:
            continue
        try:
            return row.settings.model_validate({"name": row.name, **found})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "settings"
            why = str(first["msg"]).removeprefix("Value error, ")
            raise ModelError(f"the adapter {folder} cannot be used: {key} is {first['input']!r} ({why})") from None
    kind = str(about.get("peft_type"))
    raise ModelError(
        f"{folder} holds an adapter of type {kind}, which is not among the methods {', '.join(METHODS)}; start from "
        "one of these, or merge it into its base and give that as model.base"
    )


# Variants of LoRA that change the base's own weights when they are put on it, or train what is not in the adapter.
REWRITES = ("pissa", "olora", "corda", "loftq", "eva", "lora_ga")
FOREIGN = ("layer_replication", "lora_bias", "alora_invocation_tokens", "trainable_token_indices", "arrow_config")


def _plain_lora(about: dict[str, Any], folder: Path) -> None:
    """Refuse what PEFT's LoRA can be and a player cannot."""
    if about.get("peft_type") != "LORA":
        return
    start = str(about.get("init_lora_weights")).lower()
    if start.startswith(REWRITES):
        raise ModelError(
            f"the adapter {folder} was started as {start}, so it stands on a base that PEFT changes; save it as plain "
            "LoRA first (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    strange = [key for key in FOREIGN if about.get(key)]
    strange += ["bias"] if about.get("bias", "none") != "none" else []
    if strange:
        raise ModelError(
            f"the adapter {folder} has {strange[0]}: {about[strange[0]]!r}, which players do not have; merge it into "
            "its base, and give that as model.base"
        )
    if about.get("use_dora") and about.get("use_rslora"):
        raise ModelError(
            f"the adapter {folder} is DoRA and rsLoRA at once, which players are not; start from one of them"
        )


def read_adapter(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """(PEFT config, tensors as PEFT names them) of an adapter folder."""
    from peft import PeftConfig

    about = _about(folder)
    tensors = read_tensors(folder / WEIGHTS)
    if about["peft_type"] in ("PROMPT_TUNING", "PREFIX_TUNING"):
        from sparring.models.virtual import from_peft

        found: tuple[Any, dict[str, Tensor]] = from_peft(about, tensors)
        return found
    if about["peft_type"] in ("HOULSBY", "PFEIFFER"):
        import sparring.models.bottleneck  # noqa: F401  makes PEFT know the type
    try:
        with quiet():
            config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        raise ModelError(f"the adapter {folder} cannot be read by PEFT ({why}); give a whole adapter") from error
    return config, tensors


PREFIX = "base_model.model."  # what PEFT puts before the names of a base's modules
ENDS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")  # what embeddings and heads are called


def whole_ends(names: Iterable[str], kept: Iterable[str]) -> dict[str, str]:
    """Embeddings and heads that PEFT has saved beside an adapter: their names in its file → in the base.

    kept  modules that are part of the adapter (`modules_to_save`)
    """
    ends = tuple(f".{name}.weight" for name in ENDS if name not in set(kept))
    plain = {name: name.removeprefix(PREFIX).replace(".base_layer.", ".") for name in names}
    return {name: inside for name, inside in plain.items() if f".{inside}".endswith(ends)}


def without_copies(model: Any, tensors: dict[str, Tensor], kept: Iterable[str], folder: Path) -> dict[str, Tensor]:
    """An adapter's tensors without the base's own embeddings and head, which PEFT may save beside them.

    Raises ModelError where they are not the base's: then they were trained, or resized.
    """
    ends = whole_ends(tensors, kept)
    own = model.state_dict(keep_vars=True) if ends else {}
    for name, inside in ends.items():
        if inside not in own:
            continue  # of another base, which is told of when it is put on this one
        given, mine = tensors[name], own[inside].detach().cpu()
        if given.shape != mine.shape or not torch.equal(given.to(mine.dtype), mine):
            raise ModelError(
                f"the adapter {folder} brings a {inside} of its own, which is not the base's: it was trained or "
                "resized; merge it with PEFT into the base it was trained on, and give that as model.base"
            )
    return {name: tensor for name, tensor in tensors.items() if ends.get(name) not in own}


def write_adapter(folder: Path, config: Any, tensors: dict[str, Tensor], base_name: str) -> None:
    """Write an adapter as PEFT reads it; the same adapter gives the same bytes."""
    settings = config.to_dict()
    if settings.get("num_virtual_tokens"):
        from sparring.models.virtual import to_peft

        settings, tensors = to_peft(config, tensors)
    settings |= {"inference_mode": True, "base_model_name_or_path": base_name}
    with written(folder / WEIGHTS) as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG, json.dumps(_plain(settings), indent=2, sort_keys=True) + "\n")


def attach(model: Any, name: str, tensors: dict[str, Tensor], folder: Path) -> None:
    """Put tensors into the adapter of that name. Raises ModelError where they are not this adapter's."""
    from peft import set_peft_model_state_dict

    mine = tensors_of(model, name)
    strange, missing = sorted(set(tensors) - set(mine)), sorted(set(mine) - set(tensors))
    if strange:
        raise ModelError(
            f"the adapter {folder} holds {strange[0]}, which this base or this method has no place for; give the base "
            "it belongs to, and an adapter saved without embeddings"
        )
    if missing:
        raise ModelError(f"the adapter {folder} is damaged: it has no {missing[0]}; give a whole adapter")
    for key, tensor in tensors.items():
        if tensor.shape != mine[key].shape:
            raise ModelError(
                f"the adapter {folder} does not fit this base ({key} is {tuple(tensor.shape)} where "
                f"{tuple(mine[key].shape)} is needed); give the base it belongs to"
            )
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"the adapter {folder} has NaN or infinite numbers in {key}; give one that has not diverged"
            )
    try:
        with quiet():
            set_peft_model_state_dict(model, tensors, adapter_name=name)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise ModelError(f"the adapter {folder} does not fit this base ({why}); give the base it belongs to") from error


def tensors_of(model: Any, name: str) -> dict[str, Tensor]:
    """An adapter's tensors, on the CPU, as PEFT names them in a file."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def _about(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says."""
    if not (folder / CONFIG).exists():
        raise ModelError(f"{folder} holds no adapter ({CONFIG}); give the folder of one")
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise ModelError(
            f"{folder} has pickled weights (adapter_model.bin), which are not loaded; convert them to {WEIGHTS}"
        )
    try:
        about: dict[str, Any] = read_json(folder / CONFIG)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / CONFIG} cannot be read ({error}); give the folder of a whole adapter") from error
    if not isinstance(about, dict) or not about.get("peft_type"):
        raise ModelError(
            f"{folder / CONFIG} does not say which kind of adapter it is (peft_type); give a whole adapter"
        )
    return about


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """A PEFT config as JSON with sets in order, so that the same adapter gives the same bytes."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns about what is done here on purpose (a second adapter on a wrapped model, tied heads)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
