"""What a part of a process costs: CPU seconds, wall seconds, and peak memory over what was there before.

CPU seconds are those of all threads of the process. Memory is resident memory at its highest, which Linux
keeps (VmHWM) and lets a process set back; where it does not, a thread looks every two milliseconds. On CUDA it is
what torch's allocator gave out.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import nn


@dataclass
class Part:
    """Seconds of CPU, those of them spent in the kernel, and wall; bytes above the start of the first part."""

    cpu: float = 0.0
    system: float = 0.0
    wall: float = 0.0
    peak: int = 0


@dataclass
class Meter:
    """Adds up the timed parts of a process by name; what lies between them is not counted."""

    device: torch.device
    parts: dict[str, Part] = field(default_factory=dict)
    _start: int | None = None
    _sampler: Sampler | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is inside; the first part sets the memory that all are measured from."""
        if self._start is None:
            gc.collect()
            gc.freeze()  # the Trainer collects when it begins: a quarter of a second for all that was ever imported
            _trim()
            self._start = self._resident()
        self._reset()
        cpu, system, wall = time.process_time(), _system(), time.perf_counter()
        yield
        self._finish()
        part = self.parts.setdefault(name, Part())
        part.cpu += time.process_time() - cpu
        part.system += _system() - system
        part.wall += time.perf_counter() - wall
        part.peak = max(part.peak, self._peak() - self._start)

    def result(self) -> dict[str, Any]:
        """Sums over the parts, the highest peak, and the parts themselves."""
        parts = {name: vars(part) for name, part in self.parts.items()}
        total = {key: sum(part[key] for part in parts.values()) for key in ("cpu", "system", "wall")}
        return {**total, "peak": max(part["peak"] for part in parts.values()), "parts": parts}

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _reset(self) -> None:
        if self.device.type == "cuda":
            self._finish()
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self._sampler:
            self._sampler.peak = 0
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes what is resident now
            except OSError:
                self._sampler = Sampler()

    def _resident(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _status("VmRSS")

    def _peak(self) -> int:
        if self._sampler:
            return max(self._sampler.peak, _status("VmRSS"))
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _status("VmHWM")


@final
class Sampler(threading.Thread):
    """Keeps the highest resident memory seen since `peak` was set to 0."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        """Look, and sleep, until the process ends."""
        while True:
            self.peak = max(self.peak, _status("VmRSS"))
            time.sleep(0.002)


def _system() -> float:
    """Seconds that the kernel spent for this process, mostly on pages of memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_stime


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}; memory is measured on Linux only")


def _trim() -> None:
    """Give free memory back, so that what loading left over does not hide what is needed later."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def warm_up(model: Any) -> None:
    """One small forward and backward before anything is timed: threads, kernels, pages of the weights."""
    ids = torch.arange(3, 19, device=model.device).unsqueeze(0)
    with torch.enable_grad():
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    model.zero_grad(set_to_none=True)


def matmul_rate(model: Any, tokens: int = 512, least: float = 0.5) -> dict[str, float]:
    """FLOP per CPU second and per wall second of plain products of `tokens` rows with the model's own matrices.

    One of each shape, as often as it occurs; the head is left out, for its size. Repeated for `least` seconds.
    """
    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    weights = {layer.weight.shape: layer.weight for layer in layers if min(layer.weight.shape) > 64} or {
        layer.weight.shape: layer.weight for layer in layers
    }
    counts = Counter(layer.weight.shape for layer in layers)
    flops, cpu, wall = 0.0, 0.0, 0.0
    with torch.no_grad():
        for shape, weight in weights.items():
            x = torch.randn(tokens, shape[1], device=weight.device).to(weight.dtype)
            seconds = _seconds(lambda x=x, weight=weight: x @ weight.T, weight.device, least / len(weights))
            flops += 2.0 * tokens * weight.numel() * counts[shape]
            cpu, wall = cpu + seconds[0] * counts[shape], wall + seconds[1] * counts[shape]
    return {"cpu": flops / cpu, "wall": flops / wall}


def _seconds(work: Any, device: torch.device, least: float) -> tuple[float, float]:
    """(CPU, wall) seconds of one call, averaged over as many as take `least` seconds."""
    work()
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < least:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 1
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count
