"""What transformers.Trainer is told: our optimiser's settings, and nothing that it could do by itself."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from sparring.config import OptimiserConfig
from sparring.models.players import Ring

OPTIMISERS = {"adamw": "adamw_torch", "rmsprop": "rmsprop", "sgd": "sgd"}


def training_arguments(
    folder: Path,
    steps: int,
    lr: float,
    optimiser: OptimiserConfig,
    seed: int,
    track: list[str],
    ring: Ring,
) -> TrainingArguments:
    """Arguments for one process on the base's device; checkpoints go to `folder`."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=lr,
        optim=OPTIMISERS[optimiser.name],
        weight_decay=optimiser.weight_decay,
        max_grad_norm=optimiser.max_grad_norm,
        seed=seed,
        save_strategy="steps",
        save_steps=optimiser.save_every or steps,
        save_total_limit=None,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(track) or "none",
        disable_tqdm=True,
        use_cpu=ring.base.device.type == "cpu",
        bf16=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several visible GPUs must not turn into DataParallel
    arguments.__dict__["_setup_devices"] = ring.base.device  # transformers itself always takes the first GPU
    if ring.base.device.type == "cuda":
        torch.cuda.set_device(ring.base.device)
    return arguments
