"""Whether an adapter fits a base in names and shapes, found out without either's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sparring.config import ModelConfig
from sparring.errors import ModelError
from sparring.models.adapters import ENDS, PREFIX, quiet, whole_ends

Shapes = dict[str, tuple[int, ...]]
BUILT = ("LORA", "IA3")  # kinds that can be put on a base which has no numbers


def misfit(folder: Path, about: dict[str, Any], shapes: Shapes, settings: Any, config: ModelConfig) -> str:
    """Why an adapter cannot stand on a base, in a sentence; empty if it can, as far as shapes tell.

    shapes    of the adapter's tensors
    settings  the base's transformers config
    """
    if about["peft_type"] == "PROMPT_TUNING":
        return _width(folder, shapes, settings)
    if about["peft_type"] not in BUILT:
        return ""
    model = _hollow(settings, config)
    whole = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    try:
        mine = _places(folder, model)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        return f"the adapter {folder} does not fit this base ({why}){_families(about, settings)}"
    mine |= {name: whole[inside] for name, inside in beside(shapes, about).items() if inside in whole}
    return _difference(folder, about, shapes, mine, settings)


def beside(shapes: Shapes, about: dict[str, Any]) -> dict[str, str]:
    """Embeddings or a head that were saved beside the adapter, not being part of it: name in its file → in the base."""
    return whole_ends(shapes, about.get("modules_to_save") or ())


def _hollow(settings: Any, config: ModelConfig) -> Any:
    """The base with shapes but no numbers."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(settings, trust_remote_code=config.trust_remote_code)
    except (ValueError, ImportError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the base is no causal language model that transformers knows ({why}); give another"
        ) from error


def _places(folder: Path, model: Any) -> Shapes:
    """Names and shapes of the tensors that this adapter's config makes on a base, which is changed."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    with quiet(), torch.device("meta"):
        wrapped = get_peft_model(model, PeftConfig.from_pretrained(str(folder)), low_cpu_mem_usage=True)
        state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _difference(folder: Path, about: dict[str, Any], shapes: Shapes, mine: Shapes, settings: Any) -> str:
    strange, missing = sorted(set(shapes) - set(mine)), sorted(set(mine) - set(shapes))
    wrong = sorted(name for name in set(shapes) & set(mine) if shapes[name] != mine[name])
    families = _families(about, settings)
    if wrong and all(name in beside(shapes, about) or _end_of(name) for name in wrong):
        name = wrong[0]
        return (
            f"the adapter {folder} was trained with {shapes[name][0]} rows in {name.removeprefix(PREFIX)}, where this "
            f"base has {mine[name][0]}: its vocabulary was changed; merge it with PEFT into the base resized alike, "
            "and give that as model.base"
        )
    if wrong:
        name = wrong[0]
        return (
            f"the adapter {folder} does not fit this base ({name} is {shapes[name]} where {mine[name]} is needed, and "
            f"{len(wrong) - 1} others); give the base it belongs to{families}"
        )
    if strange and not (missing and len(strange) < len(shapes)):
        return (
            f"the adapter {folder} holds {strange[0]} ({len(strange)} such), which this base or its own config has no "
            f"place for; give the base it belongs to{families}"
        )
    if missing:
        return (
            f"the adapter {folder} is damaged: it has no {missing[0]}, and lacks {len(missing)} of {len(mine)} tensors "
            "that its config asks for on this base; give a whole adapter, or the base it belongs to"
        )
    return ""


def _end_of(name: str) -> bool:
    return any(f".{end}." in name for end in ENDS)


def _width(folder: Path, shapes: Shapes, settings: Any) -> str:
    width = int(settings.get_text_config().hidden_size)
    shape = shapes.get("prompt_embeddings", (0, 0))
    if shape[-1] == width:
        return ""
    return f"the adapter {folder} does not fit this base (its tokens have width {shape[-1]}, the base's {width})"


def _families(about: dict[str, Any], settings: Any) -> str:
    """What the adapter says its base was, if that is another class than this one's."""
    theirs = (about.get("auto_mapping") or {}).get("base_model_class")
    mine = next(iter(getattr(settings, "architectures", None) or ()), None)
    return f"; it was trained on a {theirs}, and this is a {mine}" if theirs and mine and theirs != mine else ""
