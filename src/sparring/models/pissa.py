"""PiSSA (Meng et al. 2024, arXiv 2404.02948) that leaves the base as it is.

PiSSA trains the principal part of W = U S Vᵀ and freezes the rest, W - B₀A₀, which replaces the base's weight. Here
the adapter is a plain LoRA of rank 2r instead, and the base stays:

    B = [ B₀ | -B₀ ]    A = [ A₀ ]    B₀ = U_r √S_r / √scaling    A₀ = √S_r V_rᵀ / √scaling
                            [ A₀ ]

The first halves train, the last are held: W + scaling·(B A - B₀ A₀) is what PiSSA trains, and starts at W up to
rounding. What is saved is an ordinary LoRA, several of them share one base, and any of them merges.

PEFT's scaling is lora_alpha/r, or lora_alpha/√r with rsLoRA: of the doubled rank here. A LoraConfig of rank 2r
with 2·alpha (rsLoRA: √2·alpha) scales as PEFT's PiSSA of rank r does with alpha.

Shapes: D_out × D_in a matrix of the base, r the rank of PiSSA.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# Up to this many rows or columns, whichever are fewer, the SVD is exact: 0.5 to 2 s on one core at the limit.
EXACT = 1024

# Beyond it: subspace iterations, and more columns than asked for. Singular values that fall as 1/√i are then
# met to 2e-6, in a second for 4096 × 4096.
ITERATIONS = 16
SPARE = 16

_held = WeakTensorKeyDictionary()  # the parameters that have their hook


@torch.no_grad()
def begin(model: Any, name: str) -> None:
    """Fill the adapter `name` of a PeftModel, a LoRA of rank 2r, from the weights of the base below it.

    Where the SVD is randomised (`EXACT`), torch's seed decides.

    Raises ValueError where the adapter's rank is odd, larger than twice what a weight can have, or where a
    weight is no plain matrix: quantised, an embedding's, a convolution's.
    """
    for path, layer in _layers(model, name):
        matrix = _matrix(path, layer)
        lora_A, lora_B = layer.lora_A[name].weight, layer.lora_B[name].weight
        rank, odd = divmod(len(lora_A), 2)
        if odd or rank > min(matrix.shape):
            raise ValueError(
                f"PiSSA in {path}, a matrix of {tuple(matrix.shape)}, needs an even LoRA rank of at most "
                f"{2 * min(matrix.shape)}, not {len(lora_A)}"
            )
        u, s, v = principal(matrix.float(), rank)
        root = (s / layer.scaling[name]).sqrt()
        # rounded to the adapter's dtype first: the halves must be each other's negatives exactly
        b = (u * root).to(lora_B.dtype)
        a = (v * root).T.to(lora_A.dtype)
        lora_B.copy_(torch.cat([b, -b], dim=1))
        lora_A.copy_(torch.cat([a, a]))


def hold_half(model: Any, name: str) -> None:
    """Let only the first half of the adapter's rank learn: the rest gets a gradient of exactly 0.

    May be called again, on the same or on new parameters; they must require gradients. Weight decay would move
    the held half all the same: it must be 0.
    """
    for _, layer in _layers(model, name):
        for parameter, dim in ((layer.lora_A[name].weight, 0), (layer.lora_B[name].weight, 1)):
            if parameter not in _held:
                parameter.register_hook(_first_rows if dim == 0 else _first_columns)
                _held[parameter] = True


def principal(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest `rank` singular values of a matrix with their vectors: U [D_out, r], S [r], V [D_in, r]."""
    if min(matrix.shape) <= EXACT:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank].T
    u, s, v = torch.svd_lowrank(matrix, q=min(rank + SPARE, *matrix.shape), niter=ITERATIONS)
    return u[:, :rank], s[:rank], v[:, :rank]


def _first_rows(gradient: Tensor) -> Tensor:
    held = gradient.clone()
    held[len(held) // 2 :] = 0
    return held


def _first_columns(gradient: Tensor) -> Tensor:
    held = gradient.clone()
    held[:, held.shape[1] // 2 :] = 0
    return held


def _layers(model: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The layers that the adapter adapts, with their paths."""
    from peft.tuners.lora import LoraLayer

    found = False
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and name in layer.lora_embedding_A:
            raise ValueError(f"PiSSA does not adapt embeddings; leave {path} out of target_modules")
        if isinstance(layer, LoraLayer) and name in layer.lora_A:
            found = True
            yield path, layer
    if not found:
        raise ValueError(f'PiSSA begins in a LoRA adapter, and "{name}" is none')


def _matrix(path: str, layer: Any) -> Tensor:
    """The base's weight as D_out × D_in."""
    base = layer.get_base_layer()
    weight: Tensor = base.weight
    shape = (layer.out_features, layer.in_features)
    # Conv1D keeps it transposed
    matrix = weight.T if weight.dim() == 2 and layer.fan_in_fan_out else weight
    if not weight.is_floating_point() or tuple(matrix.shape) != shape:
        raise ValueError(
            f"PiSSA needs the weight of {path} as a plain matrix, and this {type(base).__name__} holds it quantised or "
            "otherwise; use a base in fp32, bf16 or fp16"
        )
    return matrix
