"""Tokens of a micro-batch are found by measuring a short pair, not by running out of memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import base_of, random_rows, ring_of
from tests.laws.lab import session
from torch import Tensor

from sparring.config_selfplay import SelfPlayConfig
from sparring.data.collate import Row, packed_tokens
from sparring.data.pairs import Pair, Rows, write_rows
from sparring.learning import budget_of as budget_of_phase
from sparring.learning import fine_tune
from sparring.models import memory
from sparring.models.forward import Layout
from sparring.models.memory import Budget, choose_budget, free_memory, moments, token_bytes
from sparring.models.players import Player, Ring
from sparring.models.scoring import answer_logprobs
from sparring.preparing import prepare_data
from sparring.tasks import PairTask

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
SHORT: list[Row] = [([5] * 64, [7] * 64)]
WITHOUT_WINDOWS = ("llama", "qwen3", "gpt2", "gpt_neox")  # a window makes a mask for each row: quadratic in its length


def challenger(name: str, packed: bool = True) -> Ring:
    base = base_of(name)
    ring = ring_of(base if packed else dataclasses.replace(base, layout=Layout(direct=True)))
    ring.challenge(Player.untrained(base), 0)
    ring.model.train()
    return ring


def really_kept(ring: Ring, rows: list[Row]) -> int:
    """Bytes of all that a forward pass keeps, each storage once, the weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in ring.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = 0 if storage.data_ptr() in weights else storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = answer_logprobs(ring.model, ring.base, rows)
    assert scores.logprob_A.requires_grad
    return sum(kept.values())


# ---------------------------------------------------------------- what a token takes


@LAYOUTS
@pytest.mark.parametrize("name", WITHOUT_WINDOWS)
def test_what_is_kept_is_proportional_to_the_tokens(name: str, packed: bool) -> None:
    """Longer pairs, more pairs and more answers: the measured bytes per token foretell them all."""
    ring = challenger(name, packed)
    each = token_bytes(ring.model, ring.base, SHORT)
    for prompt, answer, pairs in ((10, 10, 1), (40, 60, 1), (90, 30, 1), (30, 30, 12)):
        rows = [([5 + number] * prompt, [7] * answer) for number in range(pairs)]
        tokens = packed_tokens(rows)
        assert really_kept(ring, rows) == pytest.approx(each * tokens, rel=0.15), (prompt, answer, pairs)


def test_a_shared_prompt_is_kept_once() -> None:
    rows: list[Row] = [([5] * 90, [7, 8, 9]), ([5] * 90, [8, 9, 7]), ([5] * 90, [9, 8, 7])]
    packed, separate = (really_kept(challenger("llama", shared), rows) for shared in (True, False))
    assert packed < separate / 2


@pytest.mark.parametrize("name", WITHOUT_WINDOWS)
def test_measuring_leaves_nothing_behind(name: str) -> None:
    ring = challenger(name)
    before = {key: value.clone() for key, value in ring.model.state_dict().items()}
    assert token_bytes(ring.model, ring.base, SHORT) == token_bytes(ring.model, ring.base, SHORT)
    assert all(torch.equal(value, before[key]) for key, value in ring.model.state_dict().items())
    assert all(parameter.grad is None for parameter in ring.model.parameters())


def test_dropout_keeps_more() -> None:
    """Every adapter then keeps an input of its own."""
    bare = challenger("llama")
    kept = token_bytes(bare.model, bare.base, SHORT)
    ring = ring_of(base_of("llama"))
    ring.challenge(Player.untrained(ring.base), 0, 0.1)
    assert token_bytes(ring.model, ring.base, SHORT) > 1.2 * kept


def test_a_step_stays_flat_in_the_number_of_pairs(tmp_path: Path) -> None:
    """Micro-batches of four, forty and four hundred pairs keep no more than the budget foretells."""
    ring = challenger("llama")
    each = token_bytes(ring.model, ring.base, SHORT)
    rows = random_rows(ring.base.vocabulary, 5, 400, prompt=20, answer=12)
    pairs = [Pair(i, prompt, answer, [answer[::-1]], -9.0, [-9.5], 0) for i, (prompt, answer) in enumerate(rows)]
    write_rows(tmp_path / "pairs.arrow", pairs, Pair)
    task = PairTask(ring.base, Rows([tmp_path / "pairs.arrow"], Pair), SelfPlayConfig(), 0, 500)
    most = []
    for count in (4, 40, 400):
        batches = task.split(list(range(count)))
        given = [[row for i in batch for row in ((rows[i]), (rows[i][0], rows[i][1][::-1]))] for batch in batches]
        most.append(max(really_kept(ring, batch) for batch in (given[0], given[len(given) // 2])))
    # attention keeps a shared prompt for each of its answers, which the one short pair measured has not
    assert max(most) < 1.4 * each * 500
    assert most[2] < 1.15 * most[1]


# ---------------------------------------------------------------- what is chosen from it


def budget_of(ring: Ring, longest: int = 100, most: int = 8192, checkpointing: bool | None = None) -> Budget:
    return choose_budget(ring.model, ring.base, pair_of(longest), most, checkpointing)


def pair_of(tokens: int) -> list[Row]:
    """A prompt and an answer that take so many tokens together."""
    return [([5] * (tokens // 2), [7] * (tokens - tokens // 2 + 1))]


def test_less_memory_gives_smaller_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = challenger("llama")
    each = token_bytes(ring.model, ring.base, pair_of(100))
    found = []
    for tokens in (5000, 500, 50):
        monkeypatch.setattr(memory, "CPU_BYTES", tokens * each)
        budget = budget_of(ring)
        assert budget.tokens == tokens
        assert budget.token_bytes == each
        assert budget.peak_bytes == max(tokens, 100) * each  # the longest pair goes alone, whatever it takes
        found.append(budget)
    assert not any(budget.checkpointing for budget in found)
    assert all(budget.enough for budget in found)
    monkeypatch.setattr(memory, "CPU_BYTES", 1)
    assert budget_of(ring).tokens == 1


def test_the_longest_pair_itself_is_measured_if_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that share a long prompt make attention keep it again for each: a short pair does not show that."""
    ring = challenger("llama")
    rows: list[Row] = [([5] * 60, [7, 8, 9 + number]) for number in range(8)]
    short, own = token_bytes(ring.model, ring.base, SHORT), token_bytes(ring.model, ring.base, rows)
    assert own > 1.2 * short
    assert choose_budget(ring.model, ring.base, rows, 8192, None).token_bytes == own
    monkeypatch.setattr(memory, "free_memory", lambda device: packed_tokens(rows) * short + moments(ring.model))
    assert choose_budget(ring.model, ring.base, rows, 8192, False).token_bytes == short, (
        "not tried where it may not fit"
    )


def test_never_more_than_was_asked_for() -> None:
    ring = challenger("llama")
    assert budget_of(ring, most=8192).tokens == 8192
    assert budget_of(ring, most=300).tokens == 300


def test_little_memory_turns_checkpointing_on_unless_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = challenger("llama")
    each = token_bytes(ring.model, ring.base, SHORT)
    monkeypatch.setattr(memory, "free_memory", lambda device: 100 * each + moments(ring.model))
    assert not budget_of(ring, longest=84).checkpointing
    tight = budget_of(ring, longest=86)
    assert tight.checkpointing
    assert tight.token_bytes < each
    assert budget_of(ring, longest=2, checkpointing=True).checkpointing
    refused = budget_of(ring, longest=86, most=50, checkpointing=False)
    assert not refused.checkpointing
    assert refused.enough
    over = budget_of(ring, longest=120, most=50, checkpointing=False)
    assert not over.checkpointing
    assert not over.enough


def test_checkpointing_keeps_no_more_than_is_foretold() -> None:
    ring = challenger("llama")
    rows: list[Row] = [([5] * 60, [7] * 60)]
    plain = really_kept(ring, rows)
    ring.base.model.gradient_checkpointing_enable({"use_reentrant": False})
    kept = really_kept(ring, rows)
    foretold = budget_of(challenger("llama"), checkpointing=True).token_bytes * packed_tokens(rows)
    assert kept < plain / 2
    assert kept < foretold < plain


def test_free_memory_is_some_of_the_machine() -> None:
    free = free_memory(torch.device("cpu"))
    assert free > 0
    assert free <= memory._machine() * 1.5  # it moves between two looks


# ---------------------------------------------------------------- in a run


def phase_events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_resumed_phase_keeps_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may have become scarce since: other micro-batches would end in other bytes."""
    with session(tmp_path, "optimiser.micro_batch_tokens=512") as opened:
        base = opened.ring.base
        opened.ring.challenge(Player.untrained(base), 0)
        folder = tmp_path / "phase"
        first = budget_of_phase(opened, folder, pair_of(30))
        assert first.tokens == 512
        assert json.loads((folder / "checkpoints" / "budget.json").read_text())["budget"] == dataclasses.asdict(first)
        monkeypatch.setattr(memory, "CPU_BYTES", 1000)
        monkeypatch.setattr(memory, "free_memory", lambda device: 2**30)
        assert budget_of_phase(opened, folder, pair_of(30)) == first
        assert budget_of_phase(opened, tmp_path / "another", pair_of(30)).tokens < 10


def killed_in_sft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run and stop it behind its third step, when there is a checkpoint."""
    from sparring.trainer import Trainer

    step = Trainer.training_step

    def failing(self: Trainer, *given: Any) -> Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *given)

    with monkeypatch.context() as patch, session(folder, "sft.batch_size=8") as opened:
        data = opened.once("data", prepare_data)
        patch.setattr(Trainer, "training_step", failing)
        with pytest.raises(KeyboardInterrupt):
            opened.once("sft", fine_tune, data)


def test_a_killed_run_goes_on_with_the_memory_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with session(tmp_path, "sft.batch_size=8", name="whole") as opened:
        whole = opened.once("sft", fine_tune, opened.once("data", prepare_data))
    killed_in_sft(tmp_path, monkeypatch)
    monkeypatch.setattr(memory, "CPU_BYTES", 1000)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with session(tmp_path, "sft.batch_size=8") as opened:
        resumed = opened.once("sft", fine_tune, opened.once("data", prepare_data))
    steps = [event["step"] for event in phase_events(resumed.folder) if event["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 4
    name = "adapter_model.safetensors"
    assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not any("MiB" in event.get("text", "") for event in phase_events(resumed.folder))


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**20)
    monkeypatch.setattr(memory, "token_bytes", lambda model, base, rows: 2**20)
    with session(tmp_path, "optimiser.gradient_checkpointing=false") as opened:
        made = opened.once("sft", fine_tune, opened.once("data", prepare_data))
    said = [event["text"] for event in phase_events(made.folder) if event["event"] == "warning"]
    assert len(said) == 1
    assert "MiB to be trained on, but 1 are free" in said[0]
    assert "lower data.max_length" in said[0]


def test_checkpointing_chosen_for_lack_of_memory_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for name, free in (("plenty", 2**40), ("little", 2**10)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        with session(tmp_path, name=name) as opened:
            made = opened.once("sft", fine_tune, opened.once("data", prepare_data))
            assert not any(getattr(module, "gradient_checkpointing", False) for module in opened.ring.model.modules())
        losses.append([event["loss"] for event in phase_events(made.folder) if event["event"] == "step"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
