"""How many tokens a training step may hold at once: measured on one short pair, before anything is trained.

What the backward pass keeps grows in proportion to the tokens (there is no quadratic mask, and no logits of
all positions), so a short pair tells what the longest needs, and nothing is found out by running out of memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.data.collate import Row, packed_tokens
from sparring.models.base import Base
from sparring.models.scoring import answer_logprobs

# What a micro-batch may keep on a CPU: more does not make it faster, since matrices are large enough long before.
CPU_BYTES = 256 * 2**20
CUDA_SHARE = 0.6  # of the free memory
RESERVE = 0.85  # of the free memory, before gradient checkpointing is turned on
PROBE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Budget:
    """What a training step does at once.

    tokens         of a micro-batch; a longer pair is alone in one
    checkpointing  whether layers are computed again in the backward pass instead of kept
    token_bytes    what the backward pass keeps of each token
    peak_bytes     of the largest micro-batch, about
    free_bytes     that were free when this was chosen
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


def choose_budget(model: Any, base: Base, longest: int, most: int, checkpointing: bool | None) -> Budget:
    """Tokens of a micro-batch, and whether to checkpoint, for the trainable player that is seated.

    longest        tokens of the longest item, computed as the base's layout does
    most           tokens that were asked for at most
    checkpointing  None: only if the longest item would not fit without
    """
    free = free_memory(base.device)
    kept, layers = token_bytes(model, base), base.model.config.get_text_config().num_hidden_layers
    again = kept // layers + layers * base.model.get_input_embeddings().weight.shape[1] * base.dtype.itemsize
    if checkpointing is None:
        checkpointing = longest * kept > RESERVE * free
    per_token = again if checkpointing else kept
    wanted = CPU_BYTES if base.device.type == "cpu" else CUDA_SHARE * free
    tokens = max(1, min(most, int(wanted / per_token)))
    return Budget(tokens, checkpointing, per_token, max(longest, min(tokens, most)) * per_token, free)


def token_bytes(model: Any, base: Base) -> int:
    """Bytes that one forward pass keeps for its backward pass, per token, apart from the weights."""
    length = min(PROBE_TOKENS, base.context // 2)
    ids = [base.pad_id] * length
    rows: list[Row] = [(ids, ids)]
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
    return max(1, kept // packed_tokens(rows))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken: of the GPU, or of the machine and the container this process is in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [*_container(), _machine()]
    return min(limits)


def _machine() -> int:
    """MemAvailable; where there is no /proc, the physical memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container() -> Iterable[int]:
    """What is left of the control group's limit, version 2 or 1, if it has one."""
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        paths = [Path(folder) / name for name in (limit, used)]
        if all(path.exists() for path in paths):
            most, now = (path.read_text().strip() for path in paths)
            if most.isdigit():
                yield max(0, int(most) - int(now))
