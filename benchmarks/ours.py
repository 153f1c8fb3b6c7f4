"""Sparring's own way through the same work: LocalGenerator, score, PairTask and fit, as the phases call them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.material import END, own_memory, pair_tokens, rows_in_order
from benchmarks.meter import Meter, matmul_rate, warm_up
from benchmarks.settings import Settings
from sparring.config import GenerationConfig, ModelConfig, OptimiserConfig
from sparring.config_selfplay import SelfPlayConfig
from sparring.data.collate import packed_tokens
from sparring.data.pairs import Pair, Played, Rows, write_rows
from sparring.generation import local
from sparring.generation.sampling import stream_keys, uniforms
from sparring.methods.lora import LoRA
from sparring.models.base import load_base, load_renderer
from sparring.models.flops import Flops
from sparring.models.memory import choose_budget
from sparring.models.players import Player, Ring
from sparring.models.scoring import score
from sparring.run import Run
from sparring.tasks import PairTask, pair_rows
from sparring.trainer import fit


def contest(folder: Path, settings: Settings, grouped: bool) -> dict[str, Any]:
    """Do the work; the cost, the losses, the useful tokens, the FLOPs needed, and the machine's rate."""
    rows = rows_in_order(folder, settings, grouped)
    config = ModelConfig(dtype=settings.dtype)
    base = load_base(folder / "model", config, load_renderer(folder / "model", config))
    own_memory(base.model)
    ring, start = Ring(base, LoRA(), "model"), Player.load(folder / "start")
    warm_up(ring.challenge(start, settings.seed))
    meter = Meter(base.device)
    flops, tokens, losses = 0, pair_tokens(rows), []
    if settings.work != "learn":
        answered = play(ring, start, rows, settings, meter)
        tokens = answered if settings.work == "play" else tokens
        flops += _play_flops(ring, rows)
    if settings.work != "play":
        with tempfile.TemporaryDirectory(dir=folder) as run_folder, Run(Path(run_folder) / "run") as run:
            losses = learn(run, ring, start, rows, settings, meter)
        flops += _learn_flops(ring, rows)
    rate = matmul_rate(ring.model)
    return {**meter.result(), "losses": losses, "tokens": tokens, "flops": flops, "rate": rate}


# ---------------------------------------------------------------- play


def play(ring: Ring, start: Player, rows: Sequence[Played], settings: Settings, meter: Meter) -> int:
    """Answer every prompt with LocalGenerator; returns the number of tokens in the answers."""
    asked = [(row, number) for row in rows for number in range(len(row.synthetic_ids))]
    keys = stream_keys(settings.seed, 0, [row.key for row, _ in asked], [number for _, number in asked])
    lengths = np.array([len(row.synthetic_ids[number]) for row, number in asked])
    with ending_at(keys, lengths), meter.part("play"):
        model = ring.seat(start, merged=True)
        generator = local.LocalGenerator(model, ring.base, GenerationConfig())
        answers = generator([row.prompt_ids for row, _ in asked], keys, int(lengths.max()))
    given = [len(answer.ids) for answer in answers]
    if given != lengths.tolist():
        raise SystemExit(f"LocalGenerator gave {sum(given)} tokens instead of {lengths.sum()}")
    return sum(given)


@contextmanager
def ending_at(keys: Any, lengths: Any) -> Iterator[None]:
    """Let the answer of each key end at its length and not before; a random model would not end at all.

    A row is known by its random number, whatever its place in the batch: the one drawn for its last token.
    """
    last = np.array([uniforms(keys[i : i + 1], length - 1)[0] for i, length in enumerate(lengths.tolist())])
    plain = local.draw

    def forced(logits_BV: Tensor, u_B: Any, *more: Any) -> tuple[Tensor, Tensor]:
        chosen_B, logprob_B = plain(logits_BV, u_B, *more)
        due_B = torch.from_numpy(np.isin(u_B, last)).to(chosen_B.device)
        return torch.where(due_B, END, torch.where(chosen_B == END, END + 2, chosen_B)), logprob_B

    local.draw = forced
    try:
        yield
    finally:
        local.draw = plain


# ---------------------------------------------------------------- learn


def learn(run: Run, ring: Ring, start: Player, rows: Sequence[Played], settings: Settings, meter: Meter) -> list[float]:
    """Score the opponent's log-probs, then one epoch of `fit`; the loss of every step."""
    losses: list[float] = []
    run.listeners.append(lambda event: losses.append(event["spin_loss"]) if event["event"] == "step" else None)
    order = list(range(len(rows)))
    steps = [order[first : first + settings.step] for first in range(0, len(rows), settings.step)]
    optimiser = OptimiserConfig()

    def make(folder: Path) -> None:
        with meter.part("score"):
            known = scored(ring, start, rows, optimiser.micro_batch_tokens)
        caught = known if known[0][1:] else caught_while_playing(ring, rows, known, optimiser.micro_batch_tokens)
        with meter.part("score"):
            pairs = written(rows, caught, folder / "pairs.arrow")
        with meter.part("learn"):
            ring.challenge(start, settings.seed)
            longest = max((pair_rows(pair) for pair in pairs), key=packed_tokens)
            budget = choose_budget(ring.model, ring.base, longest, optimiser.micro_batch_tokens, None)
            config = SelfPlayConfig(beta=settings.beta, anchor=0.0)
            task = PairTask(ring.base, pairs, config, 0, budget.tokens)
            fit(
                run, folder, ring, task, steps, lr=settings.lr, warmup=0, schedule="linear", optimiser=optimiser,
                seed=settings.seed, track=[], watch=lambda step, means: None, checkpointing=budget.checkpointing,
            )  # fmt: skip

    run.once("player", make)
    return losses


def scored(ring: Ring, opponent: Player, rows: Sequence[Played], tokens: int) -> list[list[float]]:
    """log p under the opponent of each row's real answer; in bf16 of its synthetic ones too, as a run does it."""
    model, caught = ring.seat(opponent), ring.base.dtype == torch.float32
    asked = [(row.prompt_ids, ids) for row in rows for ids in (row.real_ids, *([] if caught else row.synthetic_ids))]
    values = iter(score(model, ring.base, asked, tokens))
    return [[next(values) for _ in range(1 if caught else 1 + len(row.synthetic_ids))] for row in rows]


def caught_while_playing(
    ring: Ring, rows: Sequence[Played], known: list[list[float]], tokens: int
) -> list[list[float]]:
    """`known` with what the play phase hands over in fp32: the synthetic answers' log-probs. Not timed."""
    asked = [(row.prompt_ids, ids) for row in rows for ids in row.synthetic_ids]
    values = iter(score(ring.model, ring.base, asked, tokens))
    return [[*real, *(next(values) for _ in row.synthetic_ids)] for real, row in zip(known, rows, strict=True)]


def written(rows: Sequence[Played], known: list[list[float]], path: Path) -> Rows[Pair]:
    """The scored pairs, written and mapped as the score phase does it."""
    pairs = [
        Pair(row.key, row.prompt_ids, row.real_ids, row.synthetic_ids, real, synthetic, 0)
        for row, (real, *synthetic) in zip(rows, known, strict=True)
    ]
    write_rows(path, pairs, Pair)
    return Rows([path], Pair)


# ---------------------------------------------------------------- the least work there is


def _learn_flops(ring: Ring, rows: Sequence[Played]) -> int:
    """Of scoring what is not known and learning, when every prompt is passed once and the head sees answers only."""
    flops = Flops.of(ring.model)
    total = 0
    for row in rows:
        answers = [row.real_ids, *row.synthetic_ids]
        lengths = [len(row.prompt_ids) + len(ids) for ids in answers]
        again = [len(row.prompt_ids)] * (len(answers) - 1)
        answered = sum(map(len, answers))
        total += flops.training(lengths, answered) - flops.training(again, 0)
        known = ring.base.dtype == torch.float32
        total += flops.forward(lengths[:1], len(row.real_ids)) if known else flops.forward(lengths, answered)
        total -= 0 if known else flops.forward(again, 0)
    return total


def _play_flops(ring: Ring, rows: Sequence[Played]) -> int:
    """Of decoding every answer with the base's own matrices, each prompt passed once."""
    asked = [(len(row.prompt_ids), len(ids)) for row in rows for ids in row.synthetic_ids]
    return Flops.of(ring.base.model).decoding([p for p, _ in asked], [s for _, s in asked])
