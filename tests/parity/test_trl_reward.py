"""The loss of a reward model and its gradients against TRL's RewardTrainer: same weights, same tokens, one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import base_of, byte_tokenizer, disturb, model_of, random_rows, ring_of
from tests.parity.test_trl import bare

from sparring.config_reward import RewardConfig
from sparring.data.pairs import Preference, Rows, write_rows
from sparring.models.players import Player, Ring
from sparring.models.reward_head import NAME, fresh, put_on
from sparring.reward_task import RewardTask

trl = pytest.importorskip("trl")

NEAR = 1e-5


def pairs_of(vocabulary: int) -> list[Preference]:
    """Pairs of different lengths."""
    chosen, rejected = random_rows(vocabulary, 1, 6), random_rows(vocabulary, 2, 6)
    return [
        Preference(prompt, mine, theirs, str(i))
        for i, ((prompt, mine), (_, theirs)) in enumerate(zip(chosen, rejected, strict=True))
    ]


def classifier(name: str, ring: Ring, weight_D: torch.Tensor, tokenizer: Any) -> Any:
    """TRL's model: transformers' sequence classifier with PEFT's LoRA, and our weights."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    config = ring.base.model.config
    config.num_labels, config.pad_token_id = 1, tokenizer.eos_token_id
    model = AutoModelForSequenceClassification.from_config(config)
    theirs = {key: value for key, value in model_of(config).state_dict().items() if not key.startswith("lm_head")}
    missing, strange = model.load_state_dict(theirs, strict=False)
    assert not strange
    assert missing == ["score.weight"]
    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type=TaskType.SEQ_CLS, modules_to_save=[]
    )
    wrapped = get_peft_model(model, settings)
    ours = {bare(key): p for key, p in ring.trainable().items() if NAME not in key}
    with torch.no_grad():
        for key, p in wrapped.named_parameters():
            if "lora_" in key and "score" not in key:
                p.copy_(ours.pop(bare(key)))
            elif "score" in key and "lora_B" not in key and "lora_A" not in key:
                p.copy_(weight_D.unsqueeze(0))
                p.requires_grad_(True)
    assert not ours
    return wrapped


@pytest.mark.parametrize(("margin", "centre"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.05), (0.3, 0.01)])
def test_loss_and_gradients(tmp_path, margin, centre):
    from datasets import Dataset

    tokenizer = byte_tokenizer()
    base = base_of("llama", tokenizer=tokenizer)
    assert base.layout.packed
    ring = ring_of(base)
    ring.challenge(Player.untrained(base), 0)
    disturb(ring)
    head = fresh(base)
    torch.manual_seed(3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(len(head.weight)))
    put_on(base, head)
    rows = pairs_of(base.vocabulary)
    write_rows(tmp_path / "pairs.arrow", rows, Preference)
    pairs = Rows([tmp_path / "pairs.arrow"], Preference)
    task = RewardTask(base, head, pairs, RewardConfig(margin=margin, centre=centre), 8192)
    items = list(range(len(rows)))
    loss = task.loss(ring.model, items)[0] / task.weight(items)
    loss.backward()
    ours = {bare(key): p.grad.clone() for key, p in ring.trainable().items() if p.grad is not None}

    model = classifier("llama", ring, head.weight.detach(), tokenizer)
    data = Dataset.from_list(
        [{"chosen_ids": r.prompt_ids + r.chosen_ids, "rejected_ids": r.prompt_ids + r.rejected_ids} for r in rows]
    )
    tokenizer.pad_token = tokenizer.eos_token
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(
            str(tmp_path / "trl"), use_cpu=True, report_to="none", max_length=None, disable_dropout=True,
            center_rewards_coefficient=centre or None, gradient_checkpointing=False, bf16=False,
        ),
        processing_class=tokenizer,
        train_dataset=data,
    )  # fmt: skip
    margins = [{"margin": margin} if margin else {} for _ in rows]
    batch = trainer.data_collator([{**row, **more} for row, more in zip(data, margins, strict=True)])
    theirs = trainer.compute_loss(model, batch)
    theirs.backward()

    assert loss.item() == pytest.approx(theirs.item(), abs=NEAR)
    known = {bare(key): p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert {key for key in ours if "lora_" in key} == {key for key in known if "lora_" in key and "score" not in key}
    scale = max(grad.abs().max() for grad in ours.values())
    for key, grad in ours.items():
        other = next(g for k, g in known.items() if ("score" in k if NAME in key else k == key))
        assert torch.allclose(grad, other.reshape(grad.shape), atol=NEAR * float(scale), rtol=0), key
