"""The rivals' learning: TRL's DPOTrainer on token ids. Imported only where it is run, for it needs TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from benchmarks.meter import Meter
from benchmarks.settings import Settings
from sparring.data.pairs import Played


def dpo(model: Any, rows: list[Played], folder: Path, settings: Settings, tuned: bool, meter: Meter) -> list[float]:
    """One epoch of DPOTrainer; the loss of every step. B's pass for the reference is timed, its set-up is not."""
    losses: list[float] = []

    class OnIds(DPOTrainer):
        """DPOTrainer on token ids, in the order given."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def _precompute_ref_logps(self, *given: Any) -> Any:
            with meter.part("reference"):
                return super()._precompute_ref_logps(*given)

        def compute_loss(self, *given: Any, **more: Any) -> Any:
            loss = super().compute_loss(*given, **more)
            losses.append(loss.item())
            return loss

    data = [
        {"prompt_ids": row.prompt_ids, "chosen_ids": row.real_ids, "rejected_ids": ids}
        for row in rows
        for ids in row.synthetic_ids
    ]
    tuning = {"gradient_checkpointing": False, "precompute_ref_log_probs": True} if tuned else {}
    precision = {} if settings.dtype == "bf16" else {"bf16": False}
    arguments = DPOConfig(
        output_dir=str(folder / "trl"), num_train_epochs=1, per_device_train_batch_size=settings.step,
        learning_rate=settings.lr, beta=settings.beta, warmup_steps=0, max_grad_norm=1.0, max_length=None,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=meter.device.type == "cpu",
        dataloader_pin_memory=meter.device.type == "cuda", seed=settings.seed, **tuning, **precision,
    )  # fmt: skip
    trainer = OnIds(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    with meter.part("learn"):
        trainer.train()
    return losses
