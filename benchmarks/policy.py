"""The two sides of `benchmarks.reinforce`: one step of learning from rewards, from prompts to updated weights.

Rewards are a number made of an answer's token ids, different for all, so that every group teaches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.material import own_memory, rows_in_order
from benchmarks.meter import Meter, warm_up
from benchmarks.ours import ending_at
from benchmarks.settings import Settings
from sparring.config import GenerationConfig, ModelConfig, OptimiserConfig
from sparring.config_reinforce import ReinforceConfig
from sparring.data.pairs import Group, Played, Rows, write_rows
from sparring.generation import local
from sparring.generation.sampling import stream_keys
from sparring.methods.lora import LoRA
from sparring.models.base import load_base, load_renderer
from sparring.models.memory import choose_budget
from sparring.models.players import Player, Ring
from sparring.models.scoring import score_tokens
from sparring.objectives.policy_gradient import advantages
from sparring.policy_task import PolicyTask, group_rows
from sparring.run import Run
from sparring.trainer import fit


def worth(ids: Sequence[int]) -> float:
    """A reward between 0 and 1 that nearly all answers have to themselves."""
    return float(sum((place + 1) * token for place, token in enumerate(ids)) % 1009) / 1009


# ---------------------------------------------------------------- ours


def ours(folder: Path, settings: Settings) -> dict[str, Any]:
    """Play, score under the player and under θ_0, and `fit`, as the phases of `sparring reinforce` do it."""
    rows = rows_in_order(folder, settings, grouped=False)
    config = ModelConfig(dtype=settings.dtype)
    base = load_base(folder / "model", config, load_renderer(folder / "model", config))
    own_memory(base.model)
    ring, start = Ring(base, LoRA(), "model"), Player.load(folder / "start")
    warm_up(ring.challenge(start, settings.seed))
    meter, losses = Meter(base.device), []
    with meter.part("play"):
        answers = _played(ring, start, rows, settings)
    with tempfile.TemporaryDirectory(dir=folder) as name, Run(Path(name) / "run") as run:
        run.listeners.append(lambda event: losses.append(event["loss"]) if event["event"] == "step" else None)
        run.once("player", lambda place: _learnt(run, place, ring, start, rows, answers, settings, meter))
    tokens = sum(len(ids) for group in answers for ids in group)
    return {**meter.result(), "losses": losses, "tokens": tokens}


def _played(ring: Ring, start: Player, rows: Sequence[Played], settings: Settings) -> list[list[list[int]]]:
    samples = settings.samples
    keys = stream_keys(
        settings.seed, 0, [row.key for row in rows for _ in range(samples)], [*range(samples)] * len(rows)
    )
    lengths = np.array([len(ids) for row in rows for ids in row.synthetic_ids])
    with ending_at(keys, lengths):
        generator = local.LocalGenerator(ring.seat(start, merged=True), ring.base, GenerationConfig())
        said = generator([row.prompt_ids for row in rows for _ in range(samples)], keys, int(lengths.max()))
    return [[one.ids for one in said[i : i + samples]] for i in range(0, len(said), samples)]


def _learnt(
    run: Run, place: Path, ring: Ring, start: Player, rows: Sequence[Played], answers: list[list[list[int]]],
    settings: Settings, meter: Meter,
) -> None:  # fmt: skip
    optimiser = OptimiserConfig()
    with meter.part("score"):
        asked = [(row.prompt_ids, ids) for row, group in zip(rows, answers, strict=True) for ids in group]
        passes = [
            iter(score_tokens(ring.seat(player), ring.base, asked, optimiser.micro_batch_tokens))
            for player in (start, Player.untrained(ring.base))
        ]
        values = advantages(
            torch.tensor([[worth(ids) for ids in group] for group in answers]).double(), "grpo"
        ).tolist()
        groups = []
        for row, group, each in zip(rows, answers, values, strict=True):
            sampled, first = ([next(found) for _ in group] for found in passes)
            groups.append(Group(row.key, row.prompt_ids, group, each, sampled, first))
        write_rows(place / "groups.arrow", groups, Group)
    with meter.part("learn"):
        given = Rows([place / "groups.arrow"], Group)
        ring.challenge(start, settings.seed)
        budget = choose_budget(ring.model, ring.base, group_rows(given[0]), optimiser.micro_batch_tokens, None)
        config = ReinforceConfig(samples=settings.samples, beta=settings.beta)
        task = PolicyTask(ring.base, given, config, max(map(len, answers[0])), budget.tokens)
        order = list(range(len(rows)))
        steps = [order[first : first + settings.step] for first in range(0, len(rows), settings.step)]
        fit(
            run, place, ring, task, steps, lr=settings.lr, warmup=0, schedule="linear", optimiser=optimiser,
            seed=settings.seed, track=[], watch=lambda step, means: None, checkpointing=budget.checkpointing,
        )  # fmt: skip


# ---------------------------------------------------------------- TRL's


def theirs(folder: Path, settings: Settings, tuned: bool) -> dict[str, Any]:
    """GRPOTrainer on token ids with transformers' `generate`; tuned: no gradient checkpointing, all rows at once."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows, counted, losses = rows_in_order(folder, settings, grouped=False), [0], []

    class OnIds(GRPOTrainer):  # type: ignore[misc]
        """GRPOTrainer whose prompts are the numbers of rows."""

        def _tokenize_prompts(self, prompts: Any) -> Any:
            return [rows[int(prompt)].prompt_ids for prompt in prompts], None, {}

        def compute_loss(self, *given: Any, **more: Any) -> Any:
            loss = super().compute_loss(*given, **more)
            losses.append(loss.item())
            return loss

    def reward(completion_ids: Any, **_: Any) -> list[float]:
        counted[0] += sum(map(len, completion_ids))
        return [worth(ids) for ids in completion_ids]

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if tuned and settings.dtype == "bf16" else torch.float32
    plain = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype).to(device)
    own_memory(plain)
    model = PeftModel.from_pretrained(plain, str(folder / "start"), is_trainable=True)
    warm_up(model)
    length, answers = settings.lengths[2], settings.step * settings.samples
    at_once = answers if tuned else settings.samples
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"), max_steps=len(rows) // settings.step, num_generations=settings.samples,
        per_device_train_batch_size=at_once, gradient_accumulation_steps=answers // at_once, beta=settings.beta,
        max_completion_length=length, generation_kwargs={"min_new_tokens": length}, learning_rate=settings.lr,
        warmup_steps=0, shuffle_dataset=False, use_cpu=device.type == "cpu", save_strategy="no", report_to="none",
        disable_tqdm=True, dataloader_pin_memory=device.type == "cuda", seed=settings.seed,
        bf16=settings.dtype == "bf16", **({"gradient_checkpointing": False} if tuned else {}),
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    data = Dataset.from_list([{"prompt": str(number)} for number in range(len(rows))])
    trainer = OnIds(model=model, reward_funcs=reward, args=arguments, train_dataset=data, processing_class=tokenizer)
    meter = Meter(device)
    with meter.part("step"):
        trainer.train()
    return {**meter.result(), "losses": losses, "tokens": counted[0]}
