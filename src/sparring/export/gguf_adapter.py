"""A LoRA as a GGUF adapter: llama.cpp adds it to the base's own GGUF while it computes (`--lora`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sparring.errors import ModelError
from sparring.export.adapter import scale_of
from sparring.export.engines import need
from sparring.export.gguf import announce, begin, stored, writing
from sparring.export.gguf_family import Shape, converted, names_of, shape_of
from sparring.models.adapters import read_adapter

_PART = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight$")


def write_gguf_adapter(adapter: Path, base: Path, out: Path, name: str = "") -> None:
    """Write a PEFT adapter folder as the file `out`, in 32 bits. base: the folder of the model that it belongs to.

    llama.cpp scales B·A by alpha/r. Where PEFT scales in another way (rsLoRA, alpha_pattern), B is multiplied by
    what is missing. Raises ModelError for what is more than a LoRA on matrices; then nothing is written.
    """
    need("gguf")
    config, tensors = read_adapter(adapter)
    if more := _more(config):
        raise ModelError(
            f"{adapter} {more}, which llama.cpp's adapters cannot hold; merge it into its base and export that"
        )
    shape = shape_of(base)
    pairs = _pairs(adapter, shape, tensors)
    with writing(out, shape.family.arch) as writer:
        writer.add_type("adapter")
        writer.add_name(name or adapter.resolve().name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(config.lora_alpha))
        halves = []
        for module, (there, a_RI, b_OR) in sorted(pairs.items(), key=lambda item: item[1][0]):
            factor = scale_of(config, module, a_RI.shape[0]) * a_RI.shape[0] / config.lora_alpha
            rows_OR = converted(shape, f"{module}.B", b_OR.float() * factor)
            halves += [(f"{there}.lora_a", a_RI.float()), (f"{there}.lora_b", rows_OR)]
        for name, tensor in halves:
            announce(writer, name, tensor.shape, "F32")
        begin(writer)
        for _, tensor in halves:
            writer.write_tensor_data(stored(tensor, "F32"))


def _more(config: Any) -> str:
    """What an adapter is beyond a LoRA, in words; empty if nothing."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        return f"is of type {kind}"
    beyond = {
        "is a DoRA, with magnitudes": config.use_dora,
        "trains modules whole (modules_to_save)": config.modules_to_save,
        "trains biases": config.bias != "none" or config.lora_bias,
        "trains tokens (trainable_token_indices)": config.trainable_token_indices,
        "adapts bare parameters (target_parameters)": config.target_parameters,
        "repeats layers (layer_replication)": config.layer_replication,
    }
    return next((words for words, there in beyond.items() if there), "")


def _pairs(folder: Path, shape: Shape, tensors: dict[str, Tensor]) -> dict[str, tuple[str, Tensor, Tensor]]:
    """module → (its weight's name in GGUF, A [r, in], B [out, r])."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith(".base_layer.weight"):
            continue  # the head's own matrix, which PEFT saves beside a LoRA on it
        match = _PART.match(name)
        if match is None:
            raise ModelError(
                f"{folder} holds {name}, which is not a LoRA on a matrix, as llama.cpp's adapters are; merge it into "
                "its base and export that"
            )
        halves.setdefault(match["module"], {})[match["half"]] = tensor
    weights = {module: f"{module}.weight" for module in halves}
    if shape.tied and "lm_head" in weights:
        raise ModelError(
            f"{folder} adapts the head, which in this base is the embedding and has no matrix of its own in GGUF; "
            "use it with PEFT"
        )
    names = names_of(shape, list(weights.values()))
    return {module: (names[weights[module]], half["A"], half["B"]) for module, half in halves.items()}
