"""How many tokens a training step may hold at once: measured before anything is trained, never by running out.

What the backward pass keeps grows in proportion to the tokens (no mask is as large as the packed row, and there are
no logits of all positions). So a short pair tells whether the longest fits, and if it does, that one is measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.crew import local_size
from sparring.data.collate import Row
from sparring.models.base import Base
from sparring.models.scoring import answer_logprobs, computed_tokens

# What a micro-batch may keep on a CPU: more does not make it faster, since matrices are large enough long before.
CPU_BYTES = 128 * 2**20
CUDA_SHARE = 0.6  # of the free memory
RESERVE = 0.85  # of the free memory, before gradient checkpointing is turned on
SHORT = 64  # tokens of the first pair that is measured, and of its answer


@dataclass(frozen=True, slots=True)
class Budget:
    """What a training step does at once.

    tokens         of a micro-batch; a longer pair is alone in one
    checkpointing  whether layers are computed again in the backward pass instead of kept
    token_bytes    what the backward pass keeps of each token
    peak_bytes     of the largest micro-batch, about
    free_bytes     that were free when this was chosen, beside gradients and moments
    """

    tokens: int
    checkpointing: bool
    token_bytes: int
    peak_bytes: int
    free_bytes: int

    @property
    def enough(self) -> bool:
        """Whether the longest pair fits, as far as that can be told."""
        return self.peak_bytes <= self.free_bytes


def choose_budget(model: Any, base: Base, longest: Sequence[Row], most: int, checkpointing: bool | None) -> Budget:
    """Tokens of a micro-batch, and whether to checkpoint, for the trainable player that is seated.

    longest        the rows of the longest item that will be trained on
    most           tokens that were asked for at most
    checkpointing  None: only if the longest item would not fit without
    """
    free, tokens_of_longest = max(0, free_memory(base.device) - moments(model)), computed_tokens(base, longest)
    kept, layers = token_bytes(model, base, _short(base)), base.model.config.get_text_config().num_hidden_layers
    if 2 * tokens_of_longest * kept <= free:
        kept = token_bytes(model, base, longest)
    again = kept // layers + layers * base.model.get_input_embeddings().weight.shape[1] * base.dtype.itemsize
    if checkpointing is None:
        checkpointing = tokens_of_longest * kept > RESERVE * free
    per_token = again if checkpointing else kept
    wanted = CPU_BYTES if base.device.type == "cpu" else CUDA_SHARE * free
    tokens = max(1, min(most, int(wanted / per_token)))
    return Budget(tokens, checkpointing, per_token, max(tokens_of_longest, tokens) * per_token, free)


def moments(model: Any) -> int:
    """Bytes that training takes besides: a gradient and Adam's two moments of every number that trains."""
    return sum(3 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def _short(base: Base) -> list[Row]:
    ids = [base.pad_id] * min(SHORT, (base.context - base.virtual) // 2)
    return [(ids, ids)]


def token_bytes(model: Any, base: Base, rows: Sequence[Row]) -> int:
    """Bytes that a forward pass over some rows keeps for its backward pass, per token, apart from the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = answer_logprobs(model, base, rows)
    kept = sum(found.values())
    del scores
    return max(1, kept // computed_tokens(base, rows))


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take: of its GPU, or its part of the machine or the container it is in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([*_container(), _machine()]) // local_size()


def _machine() -> int:
    """MemAvailable; where there is no /proc, the physical memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container() -> Iterable[int]:
    """What is left of the control group's limit, version 2 or 1, if it has one; file pages can be given up."""
    for folder, limit, used, pages in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        paths = [Path(folder) / name for name in (limit, used, "memory.stat")]
        if all(path.exists() for path in paths):
            most, now, stat = (path.read_text().strip() for path in paths)
            free = dict(line.split() for line in stat.splitlines()).get(pages, "0")
            if most.isdigit():
                yield max(0, int(most) - int(now) + int(free))
