"""What llama.cpp calls an architecture, its numbers and its tensors: a row for each that can be written.

A model folder of another architecture, or with a setting that llama.cpp would pass over in silence, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.config import ModelConfig
from sparring.errors import ModelError
from sparring.models.base import context_of, read_config
from sparring.models.quantised import stored_as


@dataclass(frozen=True, slots=True)
class Family:
    """How llama.cpp holds an architecture.

    arch         its name there
    activations  of the feed-forward part; llama.cpp knows one for each architecture
    pairs        it turns neighbouring numbers of a head together, not the halves: rows of q and k are re-ordered
    shift        added to the weights of norms, which Gemma stores less 1
    windows      it knows layers with a sliding window, of which every `period`-th sees all
    llama3       it reads factors of single frequencies (Llama 3's long context)
    transposed   modules whose weights lie [in, out] (GPT-2's)
    extra        (writer, settings) → None: numbers that only this architecture has
    """

    arch: str
    activations: tuple[str | None, ...] = ("silu",)
    pairs: bool = False
    shift: float = 0.0
    windows: bool = False
    period: int = 0
    llama3: bool = False
    transposed: tuple[str, ...] = ()
    extra: Callable[[Any, dict[str, Any]], None] = field(default=lambda writer, known: None)


_TANH = ("gelu_pytorch_tanh", "gelu_new", None)


def _caps(writer: Any, known: dict[str, Any]) -> None:
    if known.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(known["attn_logit_softcapping"])
    if known.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(known["final_logit_softcapping"])


FAMILIES = {
    "llama": Family("llama", pairs=True, llama3=True),
    "mistral": Family("llama", pairs=True, llama3=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma": Family("gemma", (*_TANH, "gelu"), shift=1.0),  # what its first configs say, and no one computes
    "gemma2": Family("gemma2", _TANH, shift=1.0, windows=True, period=2, extra=_caps),
    "gemma3_text": Family("gemma3", _TANH, shift=1.0, windows=True, period=6, extra=_caps),
    "gpt2": Family("gpt2", _TANH[:2], transposed=("c_attn", "c_proj", "c_fc")),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """An architecture and the sizes of one model of it.

    known  its config as a mapping
    tied   the head is the embedding, and is not written twice
    """

    family: Family
    settings: Any
    known: dict[str, Any]
    heads: int
    groups: int
    width: int
    tied: bool

    @property
    def layers(self) -> int:
        """How many blocks."""
        return int(self.settings.num_hidden_layers)

    @property
    def context(self) -> int:
        """Tokens within which llama.cpp computes what transformers does: at most a window that it does not know."""
        context = context_of(self.settings)
        window = self.known.get("sliding_window")
        narrow = "sliding_attention" in (self.known.get("layer_types") or []) or self.known["model_type"] == "mistral"
        return min(context, window) if window and narrow and not self.family.windows else context


def shape_of(folder: Path) -> Shape:
    """Read config.json of a model folder; ModelError if llama.cpp could not run it, or not as transformers does."""
    settings = read_config(folder, ModelConfig(base=str(folder)))
    kind = settings.model_type
    if kind not in FAMILIES:
        names = sorted(FAMILIES)
        raise ModelError(
            f"{folder} is a {kind} model, which is not among those written as GGUF ({', '.join(names)}); convert the "
            "folder with llama.cpp's convert_hf_to_gguf.py, or export it as merged"
        )
    if stored := stored_as(settings):
        raise ModelError(f"{folder} is quantised ({stored}), and GGUF is made from 16 or 32 bits; merge the run first")
    known = settings.to_dict()
    heads = int(settings.num_attention_heads)
    width = known.get("head_dim") or settings.hidden_size // heads
    groups = int(known.get("num_key_value_heads") or heads)
    shape = Shape(FAMILIES[kind], settings, known, heads, groups, int(width), bool(settings.tie_word_embeddings))
    for wrong, what in _unlike(shape):
        if wrong:
            raise ModelError(
                f"{folder} has {what}, which llama.cpp does not compute for {shape.family.arch}; export it as merged"
            )
    return shape


def _unlike(shape: Shape) -> list[tuple[bool, str]]:
    """(whether, what) of settings that llama.cpp would pass over, so that it would compute something else."""
    known, family = shape.known, shape.family
    activation = known.get("hidden_activation", known.get("hidden_act", known.get("activation_function")))
    scale = known.get("query_pre_attn_scalar")
    # llama.cpp takes the models of 27 billion by their number of layers, and no others, to scale by hidden/heads
    odd = {"gemma2": 46, "gemma3": 62}.get(family.arch) == shape.layers
    expected = shape.settings.hidden_size // shape.heads if odd else shape.width
    rotations = _rotations(known)
    kinds = {rotation.get("rope_type", "default") for rotation in rotations.values()}
    fit = {"default", "linear", "yarn", "dynamic"} | ({"llama3"} if family.llama3 else set())
    partial = [rotation.get("partial_rotary_factor", 1.0) for rotation in rotations.values()]
    return [
        (activation not in family.activations, f"the activation {activation}"),
        (scale is not None and scale != expected, f"query_pre_attn_scalar {scale} (heads of {shape.width})"),
        (not kinds <= fit, f"rope of type {', '.join(sorted(kinds - fit))}"),
        (any(part not in (None, 1.0) for part in partial), "rotary embeddings on a part of each head"),
        (family.arch == "gemma2" and not known.get("attn_logit_softcapping"), "no attn_logit_softcapping"),
        (any(_odd_yarn(rotation) for rotation in rotations.values()), "yarn with settings of its own"),
        (bool(known.get("use_bidirectional_attention")), "attention in both directions"),
        (family.arch == "qwen3" and bool(known.get("attention_bias")), "biases in attention"),
        (bool(known.get("scale_attn_by_inverse_layer_idx")), "attention scaled by layer"),
    ]


def _odd_yarn(rotation: dict[str, Any]) -> bool:
    """Whether a yarn scales otherwise than llama.cpp does by default."""
    usual = {"attention_factor": None, "mscale": None, "mscale_all_dim": None, "beta_fast": 32, "beta_slow": 1}
    return rotation.get("rope_type") == "yarn" and any(
        rotation.get(name) not in (None, value) for name, value in usual.items()
    )


def _rotations(known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """rope parameters by the type of layer; models with one kind of layer have them under `full_attention`."""
    rotation = known.get("rope_parameters") or {}
    return rotation if "full_attention" in rotation else {"full_attention": rotation}


# ---------------------------------------------------------------- numbers


def describe(writer: Any, shape: Shape, rows: int) -> None:
    """Write an architecture's numbers. rows: of the embedding."""
    settings, known = shape.settings, shape.known
    writer.add_context_length(shape.context)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(known.get("intermediate_size") or known.get("n_inner") or 4 * settings.hidden_size)
    writer.add_head_count(shape.heads)
    writer.add_vocab_size(rows)
    if shape.family.arch == "gpt2":
        writer.add_layer_norm_eps(settings.layer_norm_epsilon)
        return
    writer.add_head_count_kv(shape.groups)
    writer.add_key_length(shape.width)
    writer.add_value_length(shape.width)
    writer.add_rope_dimension_count(shape.width)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    _rope(writer, shape)
    if shape.family.windows:
        _windows(writer, shape)
    shape.family.extra(writer, known)


def _rope(writer: Any, shape: Shape) -> None:
    from gguf import RopeScalingType

    rotations = _rotations(shape.known)
    rotation = rotations["full_attention"]
    writer.add_rope_freq_base(float(rotation.get("rope_theta", 10000.0)))
    if "sliding_attention" in rotations:
        writer.add_rope_freq_base_swa(float(rotations["sliding_attention"]["rope_theta"]))
    kind = rotation.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rotation["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rotation["factor"]))
        writer.add_rope_scaling_orig_ctx_len(
            int(rotation.get("original_max_position_embeddings") or context_of(shape.settings))
        )


def _windows(writer: Any, shape: Shape) -> None:
    layers = [kind == "sliding_attention" for kind in shape.known["layer_types"]]
    writer.add_sliding_window(shape.known["sliding_window"])
    if layers != [bool((index + 1) % shape.family.period) for index in range(shape.layers)]:
        writer.add_sliding_window_pattern(layers)


def frequency_factors(shape: Shape) -> Tensor | None:
    """[head/2] by what each frequency is divided, in Llama 3's long context; None elsewhere."""
    if _rotations(shape.known)["full_attention"].get("rope_type") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](shape.settings, torch.device("cpu"))
    theta = _rotations(shape.known)["full_attention"]["rope_theta"]
    plain = 1.0 / theta ** (torch.arange(0, shape.width, 2, dtype=torch.float32) / shape.width)
    factors: Tensor = plain / scaled.float()
    return factors


# ---------------------------------------------------------------- tensors

# Tables that old folders hold beside their weights.
_NOT_WEIGHTS = re.compile(r"\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")


def names_of(shape: Shape, tensors: list[str]) -> dict[str, str]:
    """The name in GGUF of each tensor of a model folder; ModelError for one that llama.cpp has no place for."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(number for number, name in MODEL_ARCH_NAMES.items() if name == shape.family.arch)
    table = get_tensor_name_map(arch, shape.layers)
    found = {}
    for name in tensors:
        if _NOT_WEIGHTS.search(name) or (shape.tied and name == "lm_head.weight"):
            continue
        full = f"transformer.{name}" if shape.family.arch == "gpt2" and re.match(r"(h|wte|wpe|ln_f)\.", name) else name
        there = table.get_name(full, try_suffixes=(".weight", ".bias"))
        if there is None:
            raise ModelError(
                f"the model holds {name}, which llama.cpp has no place for in {shape.family.arch}; export it as merged"
            )
        found[name] = there
    return found


def converted(shape: Shape, name: str, tensor: Tensor) -> Tensor:
    """A tensor as llama.cpp holds it: rows of q and k re-ordered, [out, in], norms with their 1.

    name  as transformers has it; also that of a LoRA's B [out, r], of which only rows are re-ordered
    """
    module = name.split(".")[-2]
    if shape.family.pairs and module in ("q_proj", "k_proj"):
        return paired(tensor, shape.heads if module == "q_proj" else shape.groups)
    if module in shape.family.transposed and name.endswith(".weight"):
        return tensor.t()
    if shape.family.shift and name.endswith("norm.weight"):
        return tensor.float() + shape.family.shift
    return tensor


def paired(tensor: Tensor, heads: int) -> Tensor:
    """Rows [heads · (2 · half), …] → [heads · (half · 2), …]: row j of either half become neighbours 2j and 2j + 1."""
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
