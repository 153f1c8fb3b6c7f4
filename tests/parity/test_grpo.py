"""Loss and gradient of one batch against TRL's GRPOTrainer, advantages against its GRPO and RLOO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import base_of, byte_tokenizer, make_player, model_of, random_rows, ring_of

from sparring.config_reinforce import ReinforceConfig
from sparring.data.pairs import Group, Rows, write_rows
from sparring.models.base import Base
from sparring.models.players import Player, Ring
from sparring.models.scoring import score_tokens
from sparring.objectives.policy_gradient import advantages
from sparring.policy_task import PolicyTask

trl = pytest.importorskip("trl")

LIMIT = 32
State = dict[str, torch.Tensor]


def bare(name: str) -> str:
    """A LoRA weight's name without its adapter's."""
    for adapter in ("theta_0", "player", "default"):
        name = name.replace(f".{adapter}.", ".")
    return name


def made_groups(ring: Ring, player: Player, folder: Path, samples: int = 4) -> Rows[Group]:
    """Groups of random answers; log-probs when sampled and under theta_0 are moved, so that ratios are far from 1."""
    base, generator = ring.base, torch.Generator().manual_seed(3)
    prompts = [prompt for prompt, _ in random_rows(base.vocabulary, 1, 3)]
    answers = [[ids for _, ids in random_rows(base.vocabulary, 10 + n, samples)] for n in range(len(prompts))]
    model = ring.seat(player)
    groups = []
    for n, prompt in enumerate(prompts):
        found = score_tokens(model, base, [(prompt, ids) for ids in answers[n]], 8192)
        sampled, start = (
            [[value + 0.3 * torch.randn((), generator=generator).item() for value in tokens] for tokens in found]
            for _ in range(2)
        )
        rewards = torch.randn(1, samples, generator=generator, dtype=torch.float64)
        groups.append(Group(n, prompt, answers[n], advantages(rewards, "grpo")[0].tolist(), sampled, start))
    write_rows(folder / "groups.arrow", groups, Group)
    return Rows([folder / "groups.arrow"], Group)


def ours(base: Base, player: Player, groups: Rows[Group], config: ReinforceConfig, tokens: int) -> tuple[float, State]:
    """(loss, gradients) of one step, micro-batch by micro-batch as the trainer takes them."""
    ring = ring_of(base)
    ring.challenge(player, seed=0)
    task = PolicyTask(ring.base, groups, config, LIMIT, tokens)
    items = list(range(len(groups)))
    weight, total = task.weight(items), 0.0
    for part in task.split(items):
        loss, _ = task.loss(ring.model, part)
        (loss / weight).backward()
        total += loss.item() / weight
    return total, {bare(name): p.grad.clone() for name, p in ring.trainable().items() if p.grad is not None}


def padded(rows: list[list[float]], left: bool = False) -> torch.Tensor:
    """Rows as a matrix, zeros where they are too short."""
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(r)) + r if left else r + [0] * (width - len(r)) for r in rows])


def trainer_of(base: Base, player: Player, folder: Path, kind: Any, settings: Any, samples: int) -> Any:
    """A real trainer of TRL's on the player's adapter; its data are never looked at."""
    from datasets import Dataset
    from peft import PeftModel

    tokenizer = base.renderer.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    model = PeftModel.from_pretrained(model_of(base.model.config), str(player.adapters[0]), is_trainable=True)
    arguments = settings(
        output_dir=str(folder), num_generations=samples, per_device_train_batch_size=12, steps_per_generation=1,
        max_completion_length=LIMIT, disable_dropout=True, bf16=False, gradient_checkpointing=False,
        use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    made = kind(
        model=model,
        reward_funcs=lambda completions, **more: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 3),
        processing_class=tokenizer,
    )
    made.current_gradient_accumulation_steps = 1
    return made


def theirs(trainer: Any, groups: Rows[Group], config: ReinforceConfig) -> tuple[float, State]:
    """TRL's own `_compute_loss` on the very ids, and the gradient that it leaves."""
    rows = groups[:]
    answers = [ids for group in rows for ids in group.answer_ids]
    prompts = [group.prompt_ids for group in rows for _ in group.answer_ids]
    trainer.loss_type, trainer.beta = config.loss_type, config.beta
    trainer.args.use_bias_correction_kl = config.use_bias_correction_kl
    trainer.epsilon_low, trainer.epsilon_high = config.epsilon, config.epsilon_high or config.epsilon
    inputs = {
        "prompt_ids": padded(prompts, left=True),
        "prompt_mask": padded([[1] * len(ids) for ids in prompts], left=True),
        "completion_ids": padded(answers),
        "completion_mask": padded([[1] * len(ids) for ids in answers]),
        "advantages": torch.tensor([value for group in rows for value in group.advantages], dtype=torch.float32),
        "old_per_token_logps": padded([tokens for group in rows for tokens in group.sampled]).float(),
        "ref_per_token_logps": padded([tokens for group in rows for tokens in group.start]).float(),
        "num_items_in_batch": torch.tensor(float(sum(map(len, answers)))),
    }
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    named = trainer.model.named_parameters()
    return loss.item(), {bare(name): p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_loss_and_gradient_are_trls(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = base_of("llama", tokenizer=byte_tokenizer())
    player = make_player(ring_of(base), Player.untrained(base), tmp_path, "theta")
    groups = made_groups(ring_of(base), player, tmp_path)
    trainer = trainer_of(base, player, tmp_path / "trl", trl.GRPOTrainer, trl.GRPOConfig, 4)
    values = set()
    for loss_type in ("dapo", "grpo", "dr_grpo", "bnpo"):
        for beta, right, tokens in ((0.0, True, 8192), (0.3, True, 60), (0.3, False, 60)):
            config = ReinforceConfig(
                loss_type=loss_type,  # type: ignore[arg-type]
                beta=beta,
                epsilon_high=0.28 if beta else None,
                use_bias_correction_kl=right,
            )
            mine, gradient = ours(base_of("llama"), player, groups, config, tokens)
            other, other_gradient = theirs(trainer, groups, config)
            assert mine == pytest.approx(other, abs=1e-5)
            assert gradient.keys() == other_gradient.keys()
            largest = max(value.abs().max() for value in other_gradient.values())
            assert largest > 1e-3
            for name, value in other_gradient.items():
                assert (gradient[name] - value).abs().max() <= 1e-5 * max(1.0, float(largest)), name
            values.add(round(mine, 6))
    assert len(values) == 9, "dapo and bnpo are one; all others must differ, or nothing was told apart"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_grpos(scale: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewards = torch.tensor([[0.0, 1, 1, 0], [2, 2, 2, 2], [0.1, 0.7, -3, 4]], dtype=torch.float64)
    found = theirs_advantages(trl.GRPOTrainer, trl.GRPOConfig, rewards, tmp_path, scale_rewards=scale)
    assert torch.allclose(advantages(rewards, "grpo", scale), found.double(), atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_advantages_are_rloos(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewards = torch.tensor([[0.0, 1, 1, 0], [2, 2, 2, 2], [0.1, 0.7, -3, 4]], dtype=torch.float64)
    found = theirs_advantages(trl.RLOOTrainer, trl.RLOOConfig, rewards, tmp_path, beta=0.0)
    assert torch.allclose(advantages(rewards, "rloo"), found.double(), atol=1e-5)


def theirs_advantages(kind: Any, settings: Any, rewards: torch.Tensor, folder: Path, **options: Any) -> torch.Tensor:
    """What TRL makes of given rewards in `_generate_and_score_completions`; only the sampling is replaced."""
    base = base_of("llama", tokenizer=byte_tokenizer())
    player = make_player(ring_of(base), Player.untrained(base), folder, "theta")

    def configured(**more: Any) -> Any:
        return settings(**(more | options))

    trainer = trainer_of(base, player, folder / "trl", kind, configured, rewards.shape[1])
    count = rewards.numel()
    trainer._calculate_rewards = lambda *_: rewards.float().reshape(count, 1)
    trainer.model.train()
    given = [{"prompt": "a"} for _ in range(count)]
    found: torch.Tensor = trainer._generate_and_score_completions(given)["advantages"]
    return found.reshape(rewards.shape)
