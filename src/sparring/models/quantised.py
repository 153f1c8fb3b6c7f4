"""Quantised bases: weights in 4 or 8 bits through bitsandbytes, called such that numbers depend on nothing else.

bitsandbytes stores; how its layers are called is set here (`steady`), because two of its ways break what self-play
needs, silently: numbers that are the same when an answer is scored alone, among others, and trained on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.config import Config, ModelConfig
from sparring.errors import ConfigError, ModelError
from sparring.files import digest
from sparring.methods import method_of

NAMES = {"nf4": "NF4", "fp4": "FP4", "int8": "int8"}
_STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # in safetensors


def stored_as(settings: Any) -> str:
    """How a base's weights lie in its folder: "", "nf4", "fp4", "int8", or another method's name (gptq, awq, fp8 …)."""
    found = getattr(settings, "quantization_config", None)
    if found is None:
        return ""
    told = found if isinstance(found, dict) else found.to_dict()
    if told.get("load_in_4bit") or told.get("_load_in_4bit"):
        return str(told.get("bnb_4bit_quant_type", "fp4"))
    if told.get("load_in_8bit") or told.get("_load_in_8bit"):
        return "int8"
    return str(told.get("quant_method", "unknown"))


def quantisation(settings: Any, config: ModelConfig) -> str:
    """How the weights will lie in memory, as `stored_as`; ConfigError, ModelError if that cannot be."""
    stored = stored_as(settings)
    if stored and config.quantise != "none":
        raise ConfigError(
            f"model.quantise is {config.quantise}, but model.base {config.base} comes quantised ({stored}); leave "
            "model.quantise out, or give the base in 16 bits"
        )
    found = stored or ("" if config.quantise == "none" else config.quantise)
    if found in NAMES and not _installed():
        asked = "comes in" if stored else "in"
        raise ModelError(f"a base {asked} {found} needs bitsandbytes; install it: pip install 'sparring[quant]'")
    return found


@cache
def _installed() -> bool:
    """Whether bitsandbytes can be imported here, and not only found."""
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def check_quantised(settings: Any, config: Config) -> str:
    """`quantisation` of a run's base, after checking that the rest of its config fits; loads no weights."""
    found = quantisation(settings, config.model)
    if found and config.selfplay.hold == "merge":
        raise ConfigError(
            f"selfplay.hold is merge, but the base is quantised ({found}): the weights with an adapter in them would "
            "have to be quantised again, which changes the player; set selfplay.hold to continue or stack"
        )
    if found and not method_of(config.method).quantised:
        raise ConfigError(
            f"the base is quantised ({found}), which is not for method {config.method.name}; give another method, or "
            "the base in 16 bits"
        )
    return found


def described(quantised: str, config: ModelConfig) -> str:
    """What is done to the weights, for people and fingerprints: "NF4 (double)", "int8"."""
    name = NAMES.get(quantised, quantised)
    return f"{name} (double)" if config.quantise == "nf4" and config.double_quant else name


def loading(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What from_pretrained is told so that it quantises while it loads. The head stays as it is, tied or not."""
    from transformers import BitsAndBytesConfig

    if config.quantise == "int8":
        asked = BitsAndBytesConfig(load_in_8bit=True)
    else:
        asked = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=config.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": asked, "device_map": {"": device}}


def layers(model: Any) -> Iterator[Any]:
    """The layers of a model whose weights bitsandbytes holds; none where nothing has imported it."""
    if "bitsandbytes" not in sys.modules:
        return
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            yield module


def steady(model: Any, dtype: torch.dtype) -> None:
    """Set how the quantised layers are called, before any forward pass. ModelError if the head is quantised too.

    4 bits  On a CPU with avx512_bf16 the first forward in eval mode repacks the weights in place, after which most of
            an adapter gets no gradient and merging gives garbage, with no error: turned off.
    8 bits  bitsandbytes rounds activations to 8 bits too, outside of training (on a CPU) or always (on CUDA, with
            columns of outliers chosen over the whole batch). Scored and trained log-probs would differ (law 1), and
            an answer's would depend on its neighbours (law 10). Here only weights are in 8 bits.
    """
    if any(layer is model.get_output_embeddings() for layer in layers(model)):
        raise ModelError("the head of this base is quantised, which is not supported; give one whose lm_head is not")
    for layer in layers(model):
        if type(layer).__name__ == "Linear8bitLt":
            layer.forward = partial(_eight_bits, layer)
        else:
            layer.support_avx512bf16_for_cpu = False
            layer.compute_dtype, layer.compute_type_is_set = dtype, True


def _eight_bits(layer: Any, hidden: Tensor) -> Tensor:
    """W x + b with W from 8 bits, in the dtype of x. The scales stay where PEFT looks for them first."""
    bias = None if layer.bias is None else layer.bias.to(hidden.dtype)
    found: Tensor = _EightBits.apply(hidden, layer.weight.data, layer.weight.SCB, bias)  # type: ignore[no-untyped-call]
    return found


class _EightBits(torch.autograd.Function):
    """A product with a frozen matrix that is in full size only while it is used, in both directions."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_OI, scale_O)
        return F.linear(hidden, _wide(weight_OI, scale_O, hidden.dtype), bias_O)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        weight_OI, scale_O = ctx.saved_tensors
        return upstream[0] @ _wide(weight_OI, scale_O, upstream[0].dtype), None, None, None


def _wide(weight_OI: Tensor, scale_O: Tensor, dtype: torch.dtype) -> Tensor:
    """Each row is its scale times whole numbers of 127ths."""
    return weight_OI.to(dtype).mul_((scale_O / 127).to(dtype).unsqueeze(1))


# ---------------------------------------------------------------- fingerprints and sizes


def quantised_fingerprint(content: str, folder: Path, config: ModelConfig, dtype: torch.dtype) -> str:
    """The fingerprint of a base that is quantised when loaded: other weights, so another base.

    content  the fingerprint of the folder
    The dtype counts only where weights lose bits before they are quantised.
    """
    asked = config.quantise if config.quantise == "int8" else f"{config.quantise} double={config.double_quant}"
    return digest([content, asked, str(dtype) if _loses(folder, dtype) else ""])


def _loses(folder: Path, dtype: torch.dtype) -> bool:
    """Whether some stored weight cannot be held in this dtype."""
    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            stored |= {opened.get_slice(name).get_dtype() for name in opened.offset_keys()}
    return any(torch.promote_types(_STORED[name], dtype) != dtype for name in stored & set(_STORED))


def folder_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of a folder's weights in some dtype, from their shapes."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            total += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.offset_keys())
    return total * dtype.itemsize


def weight_bytes(model: Any) -> int:
    """Bytes of all weights, shared ones once, with the scales of quantised ones."""
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()}
    return sum(held.values())


def plain_bytes(model: Any, dtype: torch.dtype) -> int:
    """Bytes that the weights would have, were none of them quantised: counted, not loaded."""
    total = weight_bytes(model)
    for layer in layers(model):
        inside = [value for name, value in layer.state_dict().items() if name != "bias"]
        total -= sum(value.untyped_storage().nbytes() for value in inside)
        total += layer.in_features * layer.out_features * dtype.itemsize
    return total


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once; of a packed matrix as many as it stands for."""
    packed = {id(layer.weight): layer.in_features * layer.out_features for layer in layers(model)}
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())
