"""Packed rows and padded rows against one plain forward pass per answer: log-probs, and gradients of every adapter."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.helpers import base_of
from tests.plain import PACKED, SEPARATE, WIDER, base_named, distance, dpo, eager, gradients, pairs_of, plain, player_of

from sparring.data.collate import collate
from sparring.data.pairs import Prompt, Rows, write_rows
from sparring.models import attention
from sparring.models.forward import Layout, token_logprobs
from sparring.models.players import TRAINED
from sparring.models.scoring import answer_logprobs
from sparring.tasks import SFTTask

ROWS_ONLY = Layout(direct=True)

# ---------------------------------------------------------------- which base has which layout


@pytest.mark.parametrize("name", [*PACKED, *WIDER])
def test_prompts_are_shared(name: str) -> None:
    base = base_named(name)
    assert base.layout == Layout(packed=True, direct=True)
    assert base.model.config._attn_implementation == attention.NAME


@pytest.mark.parametrize("name", SEPARATE)
def test_prompts_are_not_shared(name: str) -> None:
    base = base_of(name)
    assert not base.layout.packed
    assert SEPARATE[name] in base.layout.why
    assert base.model.config._attn_implementation != attention.NAME


def test_a_window_that_no_layer_has_is_no_window() -> None:
    base = base_named("qwen2", use_sliding_window=True, sliding_window=6, layer_types=["full_attention"] * 2)
    assert base.layout.packed


# ---------------------------------------------------------------- parity

CASES = [(name, packed) for name in (*PACKED, *WIDER) for packed in (True, False)]
CASES += [(name, False) for name in SEPARATE]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(("name", "packed"), CASES)
def test_logprobs(name: str, packed: bool, samples: int) -> None:
    base = base_named(name)
    shown = base.layout if packed or name in SEPARATE else ROWS_ONLY
    rows = pairs_of(samples)
    batch = collate(rows, base.pad_id, "cpu", packed)
    with torch.no_grad():
        got_N = token_logprobs(base.model, batch, shown)
        with eager(base.model):
            expected = [plain(base.model, row) for row in rows]
        torch.testing.assert_close(got_N, torch.cat(expected), rtol=0, atol=1e-5)
        scores = answer_logprobs(base.model, dataclasses.replace(base, layout=shown), rows)
    sums_A = torch.stack([values.double().sum() for values in expected])
    torch.testing.assert_close(scores.logprob_A, sums_A, rtol=1e-7, atol=5e-5)
    assert scores.tokens_A.tolist() == [len(answer) for _, answer in rows]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(("name", "packed"), [case for case in CASES if case[0] not in ("mamba", "recurrent_gemma")])
def test_gradients(name: str, packed: bool, samples: int) -> None:
    """Of all adapters, with and without layers computed again in the backward pass."""
    found = base_named(name)
    base = found if packed or name in SEPARATE else dataclasses.replace(found, layout=ROWS_ONLY)
    ring, rows = player_of(base), pairs_of(samples)
    with eager(ring.model):
        parts = [plain(ring.model, row).double().sum() for row in rows]
        expected = gradients(ring, dpo(torch.stack(parts), samples))
    assert all(value.norm() > 0 for value in expected.values())
    runs: list[int] = []
    adapter = next(module for key, module in ring.model.named_modules() if key.endswith(f"lora_A.{TRAINED}"))
    adapter.register_forward_pre_hook(lambda *_: runs.append(1))
    for checkpointing, passes in ((False, 1), (True, 2)):
        if checkpointing:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
        runs.clear()
        got = gradients(ring, dpo(answer_logprobs(ring.model, base, rows).logprob_A, samples))
        assert len(runs) == passes
        assert distance(got, expected) < 1e-5, checkpointing


def test_scores_of_gradient_checkpointing_are_the_same_bits() -> None:
    """Law 1 must hold whether the memory decided for checkpointing or not."""
    ring, rows = player_of(base_of("llama")), pairs_of(1)
    kept = answer_logprobs(ring.model, ring.base, rows).logprob_A
    ring.base.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert torch.equal(answer_logprobs(ring.model, ring.base, rows).logprob_A, kept)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_fine_tuning_takes_the_same_way(name: str, packed: bool, tmp_path: Path) -> None:
    """Examples one behind the other, the head for answers alone: loss and gradients of plain passes."""
    found = base_named(name)
    base = found if packed else dataclasses.replace(found, layout=ROWS_ONLY)
    ring, rows = player_of(base), pairs_of(1)
    with eager(ring.model):
        nll = -torch.stack([plain(ring.model, row).double().sum() for row in rows]).sum()
        expected = gradients(ring, nll)
    write_rows(tmp_path / "train.arrow", [Prompt(i, p, a, True, "") for i, (p, a) in enumerate(rows)], Prompt)
    task = SFTTask(base, Rows([tmp_path / "train.arrow"], Prompt), 10**6)
    items = list(range(len(rows)))
    assert task.split(items) == [sorted(items, key=lambda i: -len(rows[i][0] + rows[i][1]))]
    loss, sums = task.loss(ring.model, items)
    assert loss.item() == pytest.approx(nll.item(), rel=1e-6)
    assert task.weight(items) == sum(len(answer) for _, answer in rows)
    assert sums["tokens"][0] == sum(len(p) + len(a) - 1 for p, a in rows)
    assert distance(gradients(ring, loss), expected) < 1e-5
