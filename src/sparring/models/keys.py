"""Where a base makes the keys and values of its attention: found by numbers, not by its name.

One short forward pass is watched. A module makes a layer's keys last if what it gives for the first token is what the
cache then holds of it: the first token stands at position 0, where a rotary embedding is the identity.
Shapes: T tokens, N layers, H heads of keys, W a layer's keys in all heads, X what a module gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

# Modules of an attention, those that come last first; and those that make queries, keys and values, in this order.
KEYS = ("k_norm", "k_layernorm", "key_layernorm", "k_proj")
VALUES = ("v_norm", "v_proj")
FUSED = ("c_attn", "qkv_proj", "query_key_value")


@dataclass(frozen=True, slots=True)
class Site:
    """A module whose output holds keys or values.

    slots  which rows of [2N, W] its last columns are: 2·layer the keys, 2·layer + 1 the values; two, if it makes both
    axis   which dimension of the output counts tokens: 1, or 2 where heads come before
    """

    slots: tuple[int, ...]
    axis: int = 1


@dataclass(frozen=True, slots=True)
class Keys:
    """Where keys and values are made, and some that the base made itself.

    sites     by the name of the module
    made_T2NW keys before any rotation, and values, of the tokens that were looked at; fp32
    heads     of keys
    """

    sites: dict[str, Site]
    made_T2NW: Tensor
    heads: int


def find_keys(model: Any, ids: Sequence[int]) -> Keys:
    """Where the layers of a causal model make keys and values, and those of some tokens.

    Raises ValueError where they cannot be told apart: fused in another order, scaled later, not in every layer.
    """
    parents = _parents(model)
    if len(parents) != model.config.get_text_config().num_hidden_layers:
        raise ValueError(_unknown(model))
    names = [f"{parent}.{child}" for parent, children in parents.items() for child in children]
    with torch.no_grad(), _evaluating(model), _watched(model, names) as given:
        cache = DynamicCache()
        model(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True)
    held = [(layer.keys[0, :, 0], layer.values[0, :, 0]) for layer in cache.layers]
    sites: dict[str, Site] = {}
    if len(held) != len(parents) or len({part.shape for pair in held for part in pair}) != 1:
        raise ValueError(_unknown(model))
    for number, (parent, (key_HD, value_HD)) in enumerate(zip(parents, held, strict=True)):
        outputs = {child: given[f"{parent}.{child}"] for child in parents[parent]}
        found = _sites(outputs, key_HD, value_HD, number)
        if not found:
            raise ValueError(_unknown(model))
        sites |= {f"{parent}.{child}": site for child, site in found.items()}
    width = held[0][0].numel()
    slots: dict[int, Tensor] = {}
    for name, site in sites.items():
        made_TX = given[name].movedim(site.axis, 1)[0].flatten(1).float()
        slots |= dict(
            zip(site.slots, made_TX[:, -width * len(site.slots) :].chunk(len(site.slots), dim=1), strict=True)
        )
    return Keys(sites, torch.stack([slots[slot] for slot in range(2 * len(held))], dim=1), held[0][0].shape[0])


def _parents(model: Any) -> dict[str, list[str]]:
    """Attention modules by name, in the order of their layers, with their children that may make keys or values."""
    inside = {id(module) for module in model.get_decoder().modules()}
    found = {}
    for name, module in model.named_modules():
        children = [child for child in (*KEYS, *VALUES, *FUSED) if child in dict(module.named_children())]
        if id(module) in inside and children:
            found[name] = children
    return found


def _sites(outputs: dict[str, Tensor], key_HD: Tensor, value_HD: Tensor, layer: int) -> dict[str, Site]:
    """The modules of one layer that make its keys and values; none if they are not among these."""
    key, value = (_maker(outputs, names, x) for names, x in ((KEYS, key_HD), (VALUES, value_HD)))
    if key and value:
        return {key[0]: Site((2 * layer,), key[1]), value[0]: Site((2 * layer + 1,), value[1])}
    both = torch.cat([key_HD.flatten(), value_HD.flatten()])
    for name in FUSED:
        if name in outputs and outputs[name].dim() == 3 and _same(outputs[name][0, 0, -len(both) :], both):
            return {name: Site((2 * layer, 2 * layer + 1))}
    return {}


def _maker(outputs: dict[str, Tensor], names: Sequence[str], wanted_HD: Tensor) -> tuple[str, int] | None:
    """(the module that gave this for the first token, the dimension of its output that counts tokens)."""
    for name in names:
        if name in outputs:
            for axis in range(1, outputs[name].dim() - 1):
                if _same(outputs[name][0].select(axis - 1, 0).flatten(), wanted_HD.flatten()):
                    return name, axis
    return None


def _same(got: Tensor, wanted: Tensor) -> bool:
    return got.shape == wanted.shape and torch.allclose(got.float(), wanted.float(), rtol=1e-3, atol=1e-6)


def _unknown(model: Any) -> str:
    return (
        f"prefix tuning does not know where {type(model).__name__} makes keys and values: in every layer it looks for "
        f"{' or '.join(KEYS)} and {' or '.join(VALUES)}, or for queries, keys and values side by side in "
        f"{' or '.join(FUSED)}, and compares them with the cache; prompt tuning or lora work with this base"
    )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """In training mode with gradient checkpointing, transformers keeps no cache."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _watched(model: Any, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What some modules give, by name, while they are called."""
    given: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            given[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()
