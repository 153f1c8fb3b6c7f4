"""The one subclass of transformers.Trainer: what is learnt is a task passed in.

An item of the data loader is a whole optimiser step (a list of item numbers). `training_step` splits it
into micro-batches by token budget, so a step holds exactly the items asked for, and the result does not
depend on the split: the gradient is that of sum(loss)/weight over the step. Several processes share out a
step's items, and their gradients are added once; transformers and accelerate see one process, and wrap nothing.
Checkpoints hold only what is trained; they are written under another name and renamed last.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from sparring.arguments import training_arguments
from sparring.callbacks import Guard, Minutely, diverged, last_checkpoint
from sparring.config import OptimiserConfig
from sparring.crew import alone
from sparring.errors import TrainingDiverged
from sparring.files import digest, remove
from sparring.models.loraplus import parameter_groups
from sparring.models.players import Ring
from sparring.models.trained import read_trained, write_trained
from sparring.run import CHECKPOINTS, Run
from sparring.scaling import Scale, drawn_again, put_back
from sparring.schedule import rate_factor
from sparring.tasks import Sums

TRAINED = "trained.safetensors"  # in a checkpoint
Watch = Callable[[int, dict[str, float]], str | None]  # (step, its metrics) → a reason to end early
Summed = dict[str, list[float]]  # metric: [sum, weight]


class Task(Protocol):
    """What is learnt."""

    def split(self, items: list[int]) -> list[list[int]]:
        """Micro-batches of a step's items."""
        ...

    def weight(self, items: list[int]) -> float:
        """What the step's summed loss is divided by: answer tokens for SFT, pairs for self-play."""
        ...

    def loss(self, model: Any, items: list[int]) -> tuple[Tensor, Sums]:
        """The summed loss of some items, with a graph, and metrics as (sum, weight)."""
        ...

    def inspect(self, step: int, means: dict[str, float]) -> None:
        """Look at a step's metrics before its update; raise to stop the run."""
        ...


def fit(
    run: Run,
    folder: Path,
    ring: Ring,
    task: Task,
    steps: list[list[int]],
    *,
    lr: float,
    warmup: float,
    schedule: str,
    optimiser: OptimiserConfig,
    seed: int,
    track: list[str],
    watch: Watch,
    checkpointing: bool = False,
) -> str | None:
    """Train the challenger in the ring on `steps`, resuming from a checkpoint in `folder` if there is one.

    checkpointing  compute layers again in the backward pass instead of keeping them
    watch  called by the writer after each step with its number and metrics; a reason ends the training early.
    Returns that reason, or None. Raises TrainingDiverged on NaN or Inf.
    """
    folder = folder / CHECKPOINTS
    checkpoint = run.crew.decide(lambda: last_checkpoint(folder))
    done = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    run.keep(lambda event: event.get("step", 0) <= done)
    stopped = next((event["reason"] for event in run.events() if event["event"] == "stop"), None)
    if stopped is None and done < len(steps):
        track = track if run.crew.writes else []
        if "tensorboard" in track:  # its callback takes the place of its files from nowhere else
            os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.folder / "tensorboard" / run.phase)
        rate = partial(rate_factor, steps=len(steps), warmup=math.ceil(warmup * len(steps)), schedule=schedule)
        if checkpointing:
            ring.base.model.gradient_checkpointing_enable({"use_reentrant": False})
        with alone():
            arguments = training_arguments(folder, len(steps), lr, optimiser, seed, track, ring)
            arguments.run_name = f"{run.folder.name}/{run.phase}"
            trainer = Trainer(run, ring, task, steps, watch, rate, arguments)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if checkpointing:
            ring.base.model.gradient_checkpointing_disable()
        stopped = trainer.reason
    elif checkpoint:
        read_trained(checkpoint / TRAINED, ring)
    return stopped


class Trainer(transformers.Trainer):
    """transformers.Trainer over optimiser steps, with a task for a loss."""

    def __init__(
        self,
        run: Run,
        ring: Ring,
        task: Task,
        steps: list[list[int]],
        watch: Watch,
        rate: Callable[[int], float],
        arguments: TrainingArguments,
    ) -> None:
        super().__init__(model=ring.model, args=arguments, train_dataset=steps, callbacks=[Guard(), Minutely()])
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.run, self.ring, self.task, self.steps, self.watch, self.rate = (
            run,
            ring,
            task,
            steps,
            watch,
            rate,
        )
        self.reason: str | None = None
        self.scale = Scale.of(ring.base.dtype)
        self.lr_scheduler: Any
        self.optimizer: Any
        self._means: dict[str, float] = {}
        self._clock = time.monotonic()
        self._staging: str | None = None

    def get_train_dataloader(self) -> DataLoader[list[int]]:
        """One optimiser step per item, in the planned order."""
        return DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=_only)  # type: ignore[arg-type]

    def create_optimizer(self, model: Any = None) -> Any:
        """As transformers makes it; where a method has two learning rates, in two groups."""
        ratio = self.ring.row.ratio(self.ring.method)
        if self.optimizer is None and ratio != 1:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            groups = parameter_groups(self.ring.trainable(), self.args.learning_rate, ratio)
            decay = {"weight_decay": self.args.weight_decay}
            self.optimizer = kind([{**group, **decay} for group in groups], **settings)
            return self.optimizer
        return super().create_optimizer()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The learning rate's course; unlike transformers' own, its first step is not at 0."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.rate)
            self._created_lr_scheduler = True
        made: LambdaLR = self.lr_scheduler
        return made

    def training_step(self, model: Any, inputs: list[int], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one whole optimiser step; returns its mean loss over all processes."""
        model.train()
        step = self.state.global_step + 1
        weight = self.task.weight(inputs)
        mine = self._part(inputs, step) if self.run.crew.size > 1 else inputs
        if self.scale is None:
            total, sums = self._pass(model, mine, weight, step)
        else:
            total, sums = self._scaled(model, mine, weight, step, self.scale)
        self._means = {name: value / count for name, (value, count) in sums.items() if count and name != "tokens"}
        self._means["tokens"] = sums["tokens"][0]
        self.task.inspect(step, self._means)
        return total

    def _pass(
        self, model: Any, items: list[int], weight: float, step: int, scale: float = 1.0
    ) -> tuple[Tensor, Summed]:
        """Loss and metrics of a step; its gradients, times the scale, are in the parameters."""
        sums: Summed = defaultdict(lambda: [0.0, 0.0])
        total = torch.zeros((), device=self.args.device)
        for micro_batch in self.task.split(items) if items else []:
            loss, metrics = self.task.loss(model, micro_batch)
            if not math.isfinite(loss.item()):
                raise TrainingDiverged(diverged(step, "the loss", self.args.output_dir))
            self.accelerator.backward(loss / weight if scale == 1.0 else loss * (scale / weight))
            total += loss.detach() / weight
            for name, (value, count) in metrics.items():
                sums[name][0] += value
                sums[name][1] += count
        return self._add_up(total, sums) if self.run.crew.size > 1 else (total, sums)

    def _scaled(self, model: Any, items: list[int], weight: float, step: int, scale: Scale) -> tuple[Tensor, Summed]:
        """`_pass` in fp16, again and again until the scale fits; no update comes between, and dropout is the same."""
        states = drawn_again(self.ring.base.device)
        while True:
            found = self._pass(model, items, weight, step, scale.value)
            used = scale.value
            trained = self.ring.trainable().values()
            if scale.fits(parameter.grad for parameter in trained if parameter.grad is not None):
                found[1]["loss_scale"] = [used, 1.0]
                scale.grow()
                return found
            for parameter in trained:
                parameter.grad = None
            put_back(states, self.ring.base.device)

    def _part(self, items: list[int], step: int) -> list[int]:
        """This process's items of a step. Its dropout, if there is any, must differ from the others'."""
        crew = self.run.crew
        torch.manual_seed(int(digest([self.args.seed, step, crew.rank]), 16) % 2**31)
        return crew.deal([item for micro_batch in self.task.split(items) for item in micro_batch])

    def _add_up(self, total: Tensor, sums: Summed) -> tuple[Tensor, Summed]:
        """Loss and metrics of all processes; their gradients are added in place."""
        together: Summed = defaultdict(lambda: [0.0, 0.0])
        losses = 0.0
        for loss, part in self.run.crew.gather([(total.item(), dict(sums))]):
            losses += loss
            for name, (value, count) in part.items():
                together[name][0] += value
                together[name][1] += count
        gradients = []
        for parameter in self.ring.trainable().values():
            if parameter.grad is None:  # this process had no item in the step
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self.run.crew.sum_(gradients)
        return torch.tensor(losses, device=total.device), together

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One event per optimiser step; trackers get the same numbers."""
        if "loss" not in logs:
            return
        step, now = self.state.global_step, time.monotonic()
        numbers = {"loss": logs["loss"], "lr": logs["learning_rate"], "grad_norm": float(logs["grad_norm"])}
        metrics = {**numbers, **self._means}
        seconds, self._clock = round(now - self._clock, 4), now
        self.run.log({"event": "step", "step": step, "steps": len(self.steps), **metrics, "seconds": seconds})
        super().log(metrics, start_time)
        self.reason = self.run.crew.decide(lambda: self.watch(step, metrics))
        if self.reason:
            self.run.log({"event": "stop", "step": step, "reason": self.reason})
            self.control.should_training_stop = True

    # ------------------------------------------------------------ checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint whole, then give it its name; then drop the one before."""
        if not self.run.crew.writes:
            return
        home = Path(self.args.output_dir)
        staging = home / "staging"
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
        self._staging = str(staging)
        super()._save_checkpoint(model, trial)
        self._staging = None
        name = f"checkpoint-{self.state.global_step}"
        os.rename(staging / name, home / name)
        for old in home.glob("checkpoint-*"):
            if old.name != name:
                remove(old)
        self.run.tick()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_trained(folder / TRAINED, self.ring)
        if self.scale is not None:
            self.scale.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        read_trained(Path(resume_from_checkpoint) / TRAINED, self.ring)
        if self.scale is not None:
            self.scale.load(Path(resume_from_checkpoint))


def _only(batch: list[list[int]]) -> list[int]:
    return batch[0]
