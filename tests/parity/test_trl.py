"""One trajectory of ours against TRL's DPOTrainer: the same losses, gradients and weights on the same pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import base_of, byte_tokenizer, disturb, make_player, model_of, random_rows, ring_of

from sparring.config import OptimiserConfig
from sparring.config_dpo import DPOConfig
from sparring.config_selfplay import SelfPlayConfig
from sparring.data.pairs import Pair, Rows, write_rows
from sparring.models.base import Base
from sparring.models.players import Player, Ring
from sparring.models.scoring import score
from sparring.run import Run
from sparring.tasks import PairTask
from sparring.trainer import fit

trl = pytest.importorskip("trl")

BETA = 0.3
RATES = {"sigmoid": 0.05, "ipo": 0.05}  # of SGD, by TRL's name of the loss
STEPS = 3
State = dict[str, torch.Tensor]


class Watched(PairTask):
    """The task as it is; keeps what each step saw, before its update."""

    def __init__(self, ring: Ring, pairs: Rows[Pair], beta: float, tokens: int, loss: str = "sigmoid") -> None:
        config = SelfPlayConfig.model_validate(DPOConfig(beta=beta, loss=loss).as_selfplay())  # type: ignore[arg-type]
        super().__init__(ring.base, pairs, config, 0, tokens)
        self.ring = ring
        self.losses: list[float] = []
        self.gradients: list[State] = []

    def inspect(self, step: int, means: dict[str, float]) -> None:
        super().inspect(step, means)  # law 1 holds at the first step
        self.losses.append(means["spin_loss"])
        self.gradients.append({bare(name): p.grad.clone() for name, p in self.ring.trainable().items()})


def bare(name: str) -> str:
    """A LoRA weight's name without its adapter's."""
    for adapter in ("theta_0", "player", "default"):
        name = name.replace(f".{adapter}.", ".")
    return name


def made_pairs(ring: Ring, opponent: Player, folder: Path) -> Rows[Pair]:
    """Pairs of different lengths, scored by the opponent."""
    base = ring.base
    real, synthetic = random_rows(base.vocabulary, 1, 6), random_rows(base.vocabulary, 2, 6)
    model = ring.seat(opponent)
    rows = [(prompt, answer) for (prompt, _), (_, answer) in zip(real, synthetic, strict=True)]
    real_scores, synthetic_scores = score(model, base, real, 8192), score(model, base, rows, 8192)
    pairs = [
        Pair(i, prompt, answer, [rows[i][1]], real_scores[i], [synthetic_scores[i]], 0)
        for i, (prompt, answer) in enumerate(real)
    ]
    write_rows(folder / "pairs.arrow", pairs, Pair)
    return Rows([folder / "pairs.arrow"], Pair)


def ours(
    base: Base, opponent: Player, pairs: Rows[Pair], folder: Path, tokens: int, loss: str
) -> tuple[Watched, State]:
    """`trainer.fit` itself, in a run folder, with plain SGD."""
    ring = ring_of(base)
    ring.challenge(opponent, seed=0)
    task = Watched(ring, pairs, BETA, tokens, loss)

    def make(partial: Path) -> None:
        optimiser = OptimiserConfig(name="sgd", max_grad_norm=1e9)
        steps = [list(range(len(pairs)))] * STEPS
        fit(
            run, partial, ring, task, steps, lr=RATES[loss], warmup=0, schedule="constant", optimiser=optimiser,
            seed=0, track=[], watch=lambda step, means: None,
        )  # fmt: skip

    with Run(folder) as run:
        run.once("learn", make)
    return task, {bare(name): p.detach().clone() for name, p in ring.trainable().items()}


def theirs(
    base: Base, opponent: Player, pairs: Rows[Pair], folder: Path, loss: str
) -> tuple[list[float], list[State], State]:
    """TRL on the very ids: the adapter `default` is trained, and its copy `ref` is the reference."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import TrainerCallback

    gradients: list[State] = []
    losses: list[float] = []

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            named = more["model"].named_parameters()
            gradients.append({bare(name): p.grad.clone() for name, p in named if p.grad is not None})

    class OnIds(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, *given: Any, **more: Any) -> Any:
            value = super().compute_loss(*given, **more)
            losses.append((value[0] if isinstance(value, tuple) else value).item())
            return value

    tokenizer = base.renderer.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    model = PeftModel.from_pretrained(model_of(base.model.config), str(opponent.adapters[0]), is_trainable=True)
    rows = [
        {"prompt_ids": pair.prompt_ids, "chosen_ids": pair.real_ids, "rejected_ids": pair.synthetic_ids[0]}
        for pair in pairs[:]
    ]
    arguments = trl.DPOConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=len(rows),
        learning_rate=RATES[loss],
        optim="sgd",
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=0.0,
        beta=BETA,
        loss_type=loss,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = OnIds(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Gradients()],
    )
    trainer.train()
    return losses, gradients, {bare(n): p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(mine: State, other: State, relative: float) -> None:
    """Every tensor within `relative` of the other's largest entry."""
    assert mine.keys() == other.keys()
    assert len(mine) == 2 * 2 * 7  # A and B of seven matrices in two layers
    for name, value in other.items():
        assert value.abs().max() > 0, name
        assert (mine[name] - value).abs().max() <= relative * value.abs().max(), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tokens", [8192, 100], ids=["one_batch", "many_micro_batches"])
@pytest.mark.parametrize("loss", sorted(RATES))
def test_three_steps_as_trl_takes_them(
    loss: str, tokens: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the second step on the player is away from its opponent, so loss and gradients say more than log 2."""
    base = base_of("llama", tokenizer=byte_tokenizer())
    ring = ring_of(base)
    opponent = make_player(ring, Player.untrained(base), tmp_path, "theta")
    pairs = made_pairs(ring, opponent, tmp_path)
    assert len({len(pair.synthetic_ids[0]) for pair in pairs[:]}) > 3
    task, weights = ours(base_of("llama"), opponent, pairs, tmp_path / "run", tokens, loss)
    losses, gradients, other_weights = theirs(base, opponent, pairs, tmp_path / "trl", loss)
    assert len(task.losses) == len(losses) == STEPS
    assert task.losses == pytest.approx(losses, abs=1e-5)
    begun = {"sigmoid": 0.6931472, "ipo": 1 / (2 * BETA) ** 2}
    assert task.losses[0] == pytest.approx(begun[loss], abs=1e-5)
    assert abs(task.losses[-1] - task.losses[0]) > 0.05, "the player must move, or the later steps show nothing"
    for mine, other in zip(task.gradients, gradients, strict=True):
        assert_same(mine, other, 1e-4)
    assert_same(weights, other_weights, 1e-4)


def test_a_perturbed_player_has_the_closed_form(tmp_path: Path) -> None:
    """The same loss at weights far from the opponent's, against DPO's equation 7 written out by hand."""
    base = base_of("llama")
    ring = ring_of(base)
    opponent = make_player(ring, Player.untrained(base), tmp_path, "theta")
    pairs = made_pairs(ring, opponent, tmp_path)
    ring.challenge(opponent, seed=0)
    disturb(ring, seed=5, scale=0.2)
    task = Watched(ring, pairs, BETA, 8192)
    loss, _ = task.loss(ring.model, list(range(len(pairs))))
    rows = [(pair.prompt_ids, pair.real_ids) for pair in pairs[:]]
    other = [(pair.prompt_ids, pair.synthetic_ids[0]) for pair in pairs[:]]
    mine = score(ring.model, base, rows + other, 8192)
    reference = score(ring.seat(opponent), base, rows + other, 8192)
    ratio = torch.tensor(mine, dtype=torch.float64) - torch.tensor(reference, dtype=torch.float64)
    expected = -torch.nn.functional.logsigmoid(BETA * (ratio[: len(rows)] - ratio[len(rows) :])).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(loss.item() / len(rows) - 0.6931) > 0.05
