"""A model folder, or a LoRA, as one GGUF file for llama.cpp and what is built on it.

Written with the `gguf` library alone, tensor by tensor: one is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparring.config import ModelConfig
from sparring.errors import InputError, ModelError, nearest
from sparring.export.engines import need
from sparring.export.gguf_family import Shape, converted, describe, frequency_factors, names_of, shape_of
from sparring.export.gguf_tokenizer import vocabulary_of
from sparring.export.targets import KINDS
from sparring.models.base import load_renderer

# Rows that are quantised at once: what is needed beside the tensor itself stays small.
_ROWS = 4096


def write_gguf(folder: Path, out: Path, kind: str, name: str = "") -> None:
    """Write a model folder in Hugging Face layout, such as `sparring merge` makes, to the file `out`.

    name  what the model is called in the file; default: as its folder
    kind  a row of KINDS. Norms, biases and position tables stay in 32 bits. Below 8 bits the head, or the embedding
          that serves as the head, has 8. A matrix whose rows are no multiple of a block of 32 has 16.
    Raises InputError for an unknown kind, ModelError for a model or tokenizer that llama.cpp does not run as
    transformers does; then nothing is written.
    """
    need("gguf")
    if kind not in KINDS:
        raise InputError(f'GGUF kind "{kind}" is not known; {nearest(kind, KINDS)}')
    shape = shape_of(folder)
    renderer = load_renderer(folder, ModelConfig(base=str(folder)))
    with _opened(folder) as (sizes, read):
        table = names_of(shape, sorted(sizes))
        rows = next(sizes[name][0] for name, there in table.items() if there == "token_embd.weight")
        vocabulary = vocabulary_of(renderer, rows)
        with writing(out, shape.family.arch) as writer:
            writer.add_type("model")
            writer.add_name(name or folder.resolve().name)
            describe(writer, shape, rows)
            vocabulary.write(writer)
            if isinstance(renderer.tokenizer.chat_template, str):
                writer.add_chat_template(renderer.portable)
            order = sorted(table, key=lambda name: (table[name] != "token_embd.weight", _by_number(table[name])))
            _finish(writer, shape, {name: (table[name], sizes[name]) for name in order}, read, kind)


@contextmanager
def writing(out: Path, arch: str) -> Iterator[Any]:
    """A GGUF writer whose file appears under `out` only when it is whole."""
    from gguf import GGUFWriter

    partial = out.with_name(out.name + ".tmp")
    writer = GGUFWriter(partial, arch)
    try:
        yield writer
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        raise
    writer.close()
    partial.replace(out)


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[dict[str, list[int]], Callable[[str], Tensor]]]:
    """(name → size, name → tensor) of all safetensors of a folder; no tensor is read before it is asked for."""
    with ExitStack() as stack:
        holders: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise ModelError(f"{path} is damaged ({error}); make the folder again") from error
            holders |= dict.fromkeys(file.keys(), file)
        if not holders:
            raise ModelError(f"{folder} has no *.safetensors; give a model's folder")

        def read(name: str) -> Tensor:
            tensor: Tensor = holders[name].get_tensor(name)
            return tensor

        yield {name: file.get_slice(name).get_shape() for name, file in holders.items()}, read


def _finish(
    writer: Any,
    shape: Shape,
    table: dict[str, tuple[str, list[int]]],
    read: Callable[[str], Tensor],
    kind: str,
) -> None:
    """Announce all tensors, as a GGUF file begins with their list, and write them in the same order.

    table  name → (name in GGUF, size)
    """
    import gguf

    writer.add_file_type(int(gguf.LlamaFileType[KINDS[kind][1]]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    types = {}
    for name, (there, before) in table.items():
        size = converted(shape, name, torch.empty(before, device="meta")).shape
        types[name] = _type(there, size, kind, shape.tied)
        announce(writer, there, size, types[name])
    factors = frequency_factors(shape)
    if factors is not None:
        announce(writer, "rope_freqs.weight", factors.shape, "F32")
    begin(writer)
    for name in table:
        writer.write_tensor_data(stored(converted(shape, name, read(name)), types[name]))
    if factors is not None:
        writer.write_tensor_data(stored(factors, "F32"))


def _by_number(name: str) -> tuple[Any, ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split("."))


def _type(there: str, size: torch.Size, kind: str, tied: bool) -> str:
    """What a tensor is written in."""
    import gguf

    if len(size) == 1 or there.startswith("position_embd") or "_norm." in there:
        return "F32"
    head = there == "output.weight" or (tied and there == "token_embd.weight")
    name = "Q8_0" if head and kind.startswith(("q4", "q5")) else KINDS[kind][0]
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    return name if size[-1] % block == 0 else "F16"


def begin(writer: Any) -> None:
    """Write all that stands before the tensors."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def announce(writer: Any, name: str, size: torch.Size, kind: str) -> None:
    """Tell a writer of a tensor to come, in a type of gguf's."""
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    block, bytes_ = gguf.GGML_QUANT_SIZES[number]
    wide = (*size[:-1], size[-1] // block * bytes_)
    writer.add_tensor_info(name, wide, np.dtype(np.uint8), math.prod(wide), raw_dtype=number)


def stored(tensor: Tensor, kind: str) -> np.ndarray[Any, Any]:
    """The bytes of a tensor [..., columns] in a type of gguf's, uint8 [..., bytes of a row]."""
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    rows = tensor.reshape(-1, tensor.shape[-1])
    parts = [
        np.ascontiguousarray(gguf.quantize(np.ascontiguousarray(part.float().numpy()), number)).view(np.uint8)
        for part in torch.split(rows, _ROWS)
    ]
    whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return whole.reshape(*tensor.shape[:-1], -1)
