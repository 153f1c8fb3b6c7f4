"""What this machine can do, measured or read, not guessed from its name."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

import torch

SIZES = (128, 384)  # of the matrices that are timed: if the small ones are slower in bf16, that is the answer
GAINS = (0.5, 1.5)  # bf16 must be this many times as fast as fp32 to be the default on a CPU


@cache
def fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices much faster than fp32 ones (AVX512-bf16, AMX), by timing both.

    With such instructions the ratio is 3 to 5, without them far below 1, so that noise does not decide.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several may wait for each other on a busy machine, longer than they work
    try:
        return all(_gain(size) >= gain for size, gain in zip(SIZES, GAINS, strict=True))
    finally:
        torch.set_num_threads(threads)


def _gain(size: int) -> float:
    """How many times as fast a bf16 product is as one in fp32; the best of three each, in turn."""
    times = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(3):
        for dtype in times:
            a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
            begun = time.perf_counter()
            torch.mm(a, b)
            times[dtype] = min(times[dtype], time.perf_counter() - begun)
    return times[torch.float32] / times[torch.bfloat16]


def available_threads() -> int:
    """CPU threads that this process may really use: its affinity, and its container's share."""
    count = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
    for quota in _quotas():
        count = min(count, max(1, int(quota)))
    return count


def _quotas() -> list[float]:
    """CPUs that the control group allows, version 2 and version 1."""
    found = []
    second = Path("/sys/fs/cgroup/cpu.max")
    if second.exists():
        limit, period = second.read_text().split()
        if limit != "max":
            found.append(int(limit) / int(period))
    first = [Path("/sys/fs/cgroup/cpu") / name for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if all(path.exists() for path in first):
        limit, period = (path.read_text().strip() for path in first)
        if int(limit) > 0:
            found.append(int(limit) / int(period))
    return found
