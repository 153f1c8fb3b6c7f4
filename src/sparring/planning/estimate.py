"""What a run takes, from a few passes timed on this machine: seconds, memory, disk. Trains nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sparring.config import Config
from sparring.data.collate import Row
from sparring.data.pairs import Prompt
from sparring.generation.base import Answer
from sparring.generation.local import MOST_ROWS, LocalGenerator, cache_tokens
from sparring.generation.sampling import stream_keys
from sparring.models.base import Base
from sparring.models.head import TILE
from sparring.models.memory import Budget, choose_budget, moments
from sparring.models.players import Player, Ring
from sparring.models.quantised import plain_bytes, weight_bytes
from sparring.models.scoring import answer_logprobs, computed_tokens
from sparring.schedule import plan_steps

JUDGED = 3  # forward passes over an answer when a player is judged: its own, the base's or θ_0's, the real answer's
TESTED = 5  # and when it is tested


@dataclass(frozen=True, slots=True)
class Probe:
    """The base with a fresh adapter on it, as training would have it, and the sizes that follow.

    state   bytes of gradients and moments
    """

    config: Config
    ring: Ring
    trainable: int
    base_bytes: int
    plain_bytes: int
    budget: Budget
    state: int

    @property
    def base(self) -> Base:
        return self.ring.base


def probe_of(config: Config, base: Base, longest: Sequence[Row]) -> Probe:
    """Put an adapter on, and measure what the longest item would take."""
    sizes = weight_bytes(base.model), plain_bytes(base.model, base.dtype)  # before an adapter is on it
    ring = Ring(base, config.method, config.model.base)
    ring.challenge(Player.untrained(base), seed=0)
    asked = config.optimiser.gradient_checkpointing
    budget = choose_budget(
        ring.model, base, longest, config.optimiser.micro_batch_tokens, None if asked == "auto" else asked
    )
    return Probe(config, ring, ring.size, *sizes, budget, moments(ring.model))


def facts_of(probe: Probe, seconds: dict[str, float], disk: float, **more: Any) -> dict[str, Any]:
    """The estimate as facts. disk: bytes beside the checkpoint of a phase in progress."""
    ring, budget = probe.ring, probe.budget
    beside = probe.state if ring.row.whole else probe.state + 4 * probe.trainable
    return {
        **more,
        "trainable": probe.trainable,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "base_bytes": probe.base_bytes,
        "plain_bytes": probe.plain_bytes,
        "checkpointing": budget.checkpointing,
        "free_bytes": budget.free_bytes + probe.state,
        "memory_bytes": probe.base_bytes + beside + budget.peak_bytes + 2 * 4 * TILE[probe.base.device.type],
        "disk_bytes": int(probe.trainable * 12 + disk),
    }


# ---------------------------------------------------------------- what is the same for several verbs


def sft_steps(config: Config, train: Sequence[Prompt]) -> int:
    """Steps of fine-tuning; 0 where there is none."""
    if not config.sft.epochs or config.start is not None:
        return 0
    return len(plan_steps(len(train), config.sft.batch_size, config.sft.epochs, 0))


def mean_tokens(train: Sequence[Prompt]) -> float:
    """Of an example, prompt and answer."""
    return sum(len(p.prompt_ids) + len(p.real_ids) for p in train) / len(train)


def sft_seconds(config: Config, train: Sequence[Prompt], learn: float) -> float:
    """Seconds of fine-tuning. learn: seconds per token."""
    return len(train) * config.sft.epochs * mean_tokens(train) * learn if sft_steps(config, train) else 0.0


def judge_seconds(config: Config, held: Sequence[Prompt], players: int, decode: float, token: float) -> float:
    """Seconds of judging players. decode, token: seconds per sampled answer, and per token of a forward pass."""
    return players * len(held) * config.evaluation.samples * (decode + JUDGED * mean_tokens(held) * token)


def test_seconds(
    config: Config, sides: dict[str, list[Prompt]], players: int, decode: float, token: float
) -> dict[str, float]:
    """{"test": seconds} of the best and the last player on the test prompts; empty where there are none."""
    rows = sides.get("test")
    if not rows:
        return {}
    each = (config.evaluation.samples + 1) * decode + TESTED * mean_tokens(rows) * token
    return {"test": players * len(rows) * each}


# ---------------------------------------------------------------- timed passes


def seconds_of(work: Callable[[], Any], times: int = 2) -> float:
    """Seconds that some work takes, the fastest of a few times."""
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best


def per_example(probe: Probe, train: Sequence[Prompt], backward: bool) -> float:
    """Seconds per prompt or answer token of a pass over a small batch of examples."""
    count = max(1, min(16, probe.config.optimiser.micro_batch_tokens // 512, len(train)))
    rows = [(p.prompt_ids, p.real_ids) for p in train[:count]]
    tokens = sum(len(prompt) + len(answer) for prompt, answer in rows)
    return seconds_of(lambda: _pass(probe, rows, backward)) / tokens


def per_token(probe: Probe, items: Sequence[list[Row]], backward: bool) -> float:
    """Seconds per computed token of a pass over items (pairs, groups), as many as a micro-batch would hold."""
    rows = micro_batch(probe, items)
    return seconds_of(lambda: _pass(probe, rows, backward)) / computed_tokens(probe.base, rows)


def micro_batch(probe: Probe, items: Sequence[list[Row]]) -> list[Row]:
    """The rows of the first items, to the tokens that are trained on at once; at least one item."""
    rows = list(items[0])
    for item in items[1:]:
        if computed_tokens(probe.base, [*rows, *item]) > probe.budget.tokens:
            break
        rows += item
    return rows


def _pass(probe: Probe, rows: Sequence[Row], backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        loss = answer_logprobs(probe.ring.model, probe.base, rows).logprob_A.sum()
    if backward:
        backward_of(probe, loss)


def backward_of(probe: Probe, loss: torch.Tensor) -> None:
    """A backward pass that leaves nothing behind."""
    torch.autograd.backward(loss)
    probe.ring.model.zero_grad()


def answer_limit_of(config: Config, train: Sequence[Prompt]) -> int:
    """The most tokens of an answer."""
    return config.generation.max_new_tokens or max(len(p.real_ids) for p in train)


def answering(probe: Probe) -> LocalGenerator:
    """The base as it plays; takes the adapter that trains off its seat."""
    ring, config = probe.ring, probe.config
    merges = config.generation.merge and not ring.base.quantised
    # merged, a player is as fast as the base alone
    model = ring.seat(Player.untrained(ring.base)) if merges else ring.model.eval()
    return LocalGenerator(model, ring.base, config.generation)


def per_answer(probe: Probe, train: Sequence[Prompt]) -> float:
    """Seconds per sampled answer when as many are decoded at once as the run would, from 8 decoded tokens."""
    config = probe.config
    prompt = max(len(p.prompt_ids) for p in train)
    tokens = config.generation.batch_tokens or cache_tokens(probe.base)
    at_once = max(1, min(len(train), MOST_ROWS, tokens // (prompt + answer_limit_of(config, train))))
    chosen = [train[i % len(train)].prompt_ids for i in range(at_once)]
    generator = answering(probe)
    keys = stream_keys(0, 0, [0] * at_once, list(range(at_once)))
    generator(chosen, keys, 1)
    times = [seconds_of(partial(generator, chosen, keys, size), 1) for size in (1, 9)]
    mean = sum(len(p.real_ids) for p in train) / len(train)
    return (times[0] + max(0.0, times[1] - times[0]) / 8 * mean) / at_once


def sampled(probe: Probe, prompt: Prompt, count: int, limit: int) -> list[Answer]:
    """Some answers of the base to a prompt."""
    keys = stream_keys(0, 0, [prompt.key] * count, list(range(count)))
    return answering(probe)([prompt.prompt_ids] * count, keys, limit)
