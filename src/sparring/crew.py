"""The crew: the processes that work on one run together, one of which writes.

They are started by torchrun or accelerate, do the same calls in the same order, and share out the work of a
phase. A crew of one, the usual case, does nothing here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from sparring.errors import InputError
from sparring.watch import Watch

dist: Any = distributed
T = TypeVar("T")
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Longer than any phase: the others may wait for the writer. Deaths are noticed by the watch, not by this.
PATIENCE = timedelta(days=7)
_turns = count()
_stores: list[Any] = []  # of this process: one, once the processes have met


@dataclass(frozen=True, slots=True)
class Crew:
    """This process's place among the processes of a run. Each method is called by all of them, or by none."""

    rank: int = 0
    size: int = 1
    watch: Watch | None = None

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes to the run folder and speaks."""
        return self.rank == 0

    def decide(self, make: Callable[[], T]) -> T:
        """What `make` returns to the writer, for all; only the writer calls it."""
        if self.size == 1:
            return make()
        box: list[Any] = [make() if self.writes else None]
        with self._together():
            dist.broadcast_object_list(box, src=0)
        decided: T = box[0]
        return decided

    def gather(self, values: Sequence[T]) -> list[T]:
        """The values of all processes, for all, in the order of ranks."""
        if self.size == 1:
            return list(values)
        boxes: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(boxes, list(values))
        return [value for box in boxes for value in box]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add up tensors of the same shapes over all processes, in place and in fp32; the same bits everywhere."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        with self._together():
            dist.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.detach().copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def deal(self, items: Sequence[T]) -> list[T]:
        """This process's share, dealt out forth and back: of items in order of size all get about as much."""
        rounds = [items[start : start + self.size] for start in range(0, len(items), self.size)]
        places = [self.rank if number % 2 == 0 else self.size - 1 - self.rank for number in range(len(rounds))]
        return [dealt[place] for dealt, place in zip(rounds, places, strict=True) if place < len(dealt)]

    def barrier(self) -> None:
        """Wait until all are here."""
        self.gather([])

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # a connection was closed: a process ended
            if self.watch is None:
                raise
            self.watch.broken(error)


@contextmanager
def muster() -> Iterator[Crew]:
    """The crew that this process was started in; as long as this is open, a death of one ends all.

    Raises InputError if WORLD_SIZE speaks of several processes, but nothing says where they meet.
    """
    size = _number("WORLD_SIZE", "1")
    if size == 1:
        yield Crew()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {size}, but {missing[0]} is not set; start several processes with "
            "torchrun --nproc-per-node N -m sparring run ..., or unset WORLD_SIZE for one"
        )
    rank = _number("RANK", "0")
    if not 0 <= rank < size:
        raise InputError(
            f"RANK is {rank}, but WORLD_SIZE is {size}; start several processes with torchrun, or unset both"
        )
    store = _store()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"group {next(_turns)}", store),
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )
    watch = Watch(store.clone(), rank, size, alone=not _launcher_keeps_store())
    watch.start()
    crew = Crew(rank, size, watch)
    try:
        yield crew
        crew.barrier()
    except BaseException:
        watch.leave(speaks)  # who speaks is asked before the others know, for then they may be gone
        raise
    watch.stop()
    dist.destroy_process_group()


@cache
def speaks() -> bool:
    """Whether this is the first of the processes to ask: one of them says what all have to say."""
    if not os.environ.get("MASTER_ADDR") or not os.environ.get("MASTER_PORT"):
        return True  # there are no others
    if not _launcher_keeps_store() and not _stores:
        rank = os.environ.get("RANK", "0")
        return rank == "0" or not rank.isdigit() or int(rank) >= int(os.environ["WORLD_SIZE"])  # they have not met
    try:
        return int(_store(5).add("spoken", 1)) == 1
    except (RuntimeError, ValueError):  # nobody is there: the variables are left from another job
        return True


@contextmanager
def alone() -> Iterator[None]:
    """Hide the other processes from libraries that would share out the work in their own way."""
    hidden = {name: os.environ.pop(name) for name in PLACE if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """How many processes of this run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _launcher_keeps_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _number(name: str, default: str) -> int:
    text = os.environ.get(name) or default
    if not text.isdigit():
        raise InputError(f"{name} is {text!r}, which is no number of processes; start them with torchrun, or unset it")
    return int(text)


def _store(seconds: int = 600) -> Any:
    """The store at which the processes meet, waited for so long; a restart by the launcher begins with fresh keys."""
    if not _stores:
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))
        _stores.append(dist.PrefixStore(f"sparring/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store))
    return _stores[0]
