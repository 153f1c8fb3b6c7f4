"""The check of the layout at load notices what breaks packed rows silently; CUDA's kernel is handed what is right."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.helpers import base_of, random_rows
from tests.plain import PACKED, WIDER, base_named, distance, dpo, eager, gradients, pairs_of, plain, player_of
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from sparring.data.collate import Row, collate, grouped
from sparring.models import attention, layout
from sparring.models.base import Base
from sparring.models.forward import Layout, token_logprobs
from sparring.models.scoring import answer_logprobs

# ---------------------------------------------------------------- the check at load notices what goes wrong


@contextmanager
def attending(replacement: Any) -> Iterator[None]:
    """Another function in the place of ours."""
    AttentionInterface.register(attention.NAME, replacement)
    try:
        yield
    finally:
        AttentionInterface.register(attention.NAME, attention.attend)


def falls_back(base: Base, why: str) -> None:
    assert not base.layout.packed
    assert why in base.layout.why
    assert base.model.config._attn_implementation != attention.NAME
    row = random_rows(base.vocabulary)[0]
    with torch.no_grad():
        got = answer_logprobs(base.model, base, [row]).logprob_A.item()
        assert got == pytest.approx(plain(base.model, row).sum().item(), abs=1e-4)


@pytest.mark.parametrize("name", PACKED)
def test_attention_that_does_not_look_at_the_packing(name: str) -> None:
    """A mask of all that stands before: answers see the other answers, and pairs each other."""

    def blind(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **given: Any) -> Any:
        unpacking, groups = given.pop("unpacking", None), query.shape[1] // key.shape[1]
        if unpacking is None:
            return attention.attend(module, query, key, value, mask, **given)
        unpacking.windows.add(given.get("sliding_window"))
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=given.get("scaling"))
        return out.transpose(1, 2), None

    with attending(blind):
        falls_back(base_of(name), "nats per token off")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("fault", ["ignored", "restarted"])
def test_a_model_with_positions_of_its_own(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = type(base_of(name).model.get_decoder())
    forward = decoder.forward

    def faulty(self: Any, *given: Any, position_ids: Tensor | None = None, **more: Any) -> Any:
        if position_ids is not None:
            position_ids = None if fault == "ignored" else position_ids % 8
        return forward(self, *given, position_ids=position_ids, **more)

    monkeypatch.setattr(decoder, "forward", faulty)
    falls_back(base_of(name), "nats per token off")


@pytest.mark.parametrize("name", ["mistral", "gemma3", *WIDER])
def test_a_forgotten_window_shorter_than_the_prompt(name: str) -> None:
    with attending(lambda *given, sliding_window=None, **more: attention.attend(*given, **more)):
        falls_back(base_named(name), "nats per token off")


def test_a_forgotten_window_too_long_to_be_tried() -> None:
    """Its numbers are right on short pairs; that no layer has asked for it shows."""
    window = layout.WINDOWED + 1
    assert base_named("mistral", sliding_window=window).layout.packed
    with attending(lambda *given, sliding_window=None, **more: attention.attend(*given, **more)):
        falls_back(base_named("mistral", sliding_window=window), f"do not say their window of {window} tokens")


@pytest.mark.parametrize(("name", "why"), [("mamba", "cannot be called so"), ("recurrent_gemma", "nats per token off")])
def test_a_state_that_runs_on(name: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial shows it, even where a config does not tell of such layers."""
    monkeypatch.setattr(layout, "_foreign_layers", lambda model: "")
    falls_back(base_of(name), why)


@pytest.mark.parametrize("fault", [IndexError("no such token"), RuntimeError("shapes"), TypeError("unexpected")])
def test_a_model_that_cannot_be_called_so(fault: Exception) -> None:
    def raising(*given: Any, unpacking: Any = None, **more: Any) -> Any:
        if unpacking is not None:
            raise fault
        return attention.attend(*given, **more)

    with attending(raising):
        falls_back(base_of("llama"), f"cannot be called so ({fault})")


def test_packed_rows_refuse_what_they_cannot_do() -> None:
    base = base_of("llama")
    batch = collate(pairs_of(1), 0, "cpu", packed=True)
    x = torch.zeros(1, 4, batch.input_ids_BL.shape[1], 8)
    for more, said in ({"dropout": 0.1}, "dropout"), ({"s_aux": x}, "s_aux"), ({"position_bias": x}, "position_bias"):
        with pytest.raises(ValueError, match=f"packed rows have no {said}"):
            attention.attend(base.model, x, x, x, None, unpacking=batch.unpacking, **more)


# ---------------------------------------------------------------- the tensors for CUDA's kernel, exact on a CPU


def varlen(align_end: bool) -> Any:
    """What torch.nn.attention.varlen.varlen_attn computes, as a loop over sequences.

    align_end  causality is aligned at the end of queries and keys, as flash attention has it; else at their start
    """

    def stand_in(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
        *, scale: float, window_size: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert cu_seq_q[-1] == len(query)
        assert cu_seq_k[-1] == len(key) == len(value)
        assert max_q == cu_seq_q.diff().max()
        assert max_k == cu_seq_k.diff().max()
        assert cu_seq_q.diff().min() > 0
        assert window_size[1] == 0
        parts = []
        ends = zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], cu_seq_k.tolist(), cu_seq_k.tolist()[1:], strict=False)
        for q0, q1, k0, k1 in ends:
            q, k, v = (x.transpose(0, 1) for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
            shift = (k1 - k0) - (q1 - q0) if align_end else 0
            behind = torch.arange(q1 - q0).unsqueeze(-1) + shift - torch.arange(k1 - k0)
            seen = (behind >= 0) & ((behind <= window_size[0]) | (window_size[0] < 0))
            scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)
            parts.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(parts)

    return stand_in


def test_the_kernel_takes_what_is_handed_over() -> None:
    from torch.nn.attention.varlen import varlen_attn

    known, used = inspect.signature(varlen_attn).parameters, inspect.signature(varlen(True)).parameters
    assert list(known)[:7] == list(used)[:7]
    assert set(used) <= set(known)


FLASH = Layout(packed=True, flash=True, direct=True)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3", "gpt2", *WIDER])
def test_flash_attention_gets_the_right_tensors(name: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen(align_end=True))
    base = dataclasses.replace(base_named(name), layout=FLASH)
    ring, rows = player_of(base), pairs_of(samples)
    with eager(ring.model):
        expected_N = [plain(ring.model, row) for row in rows]
        parts = torch.stack([values.double().sum() for values in expected_N])
        expected = gradients(ring, dpo(parts, samples))
    batch = collate(rows, 0, "cpu", packed=True, flash=True)
    got_N = token_logprobs(ring.model, batch, FLASH)
    torch.testing.assert_close(got_N, torch.cat(expected_N), rtol=0, atol=1e-5)
    for checkpointing in (False, True):
        if checkpointing:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
        got = gradients(ring, dpo(answer_logprobs(ring.model, base, rows).logprob_A, samples))
        assert distance(got, expected) < 1e-5


@pytest.mark.parametrize("align_end", [True, False])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_another_alignment_of_flash_attention_is_noticed(
    name: str, align_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen(align_end))
    base = base_of(name)
    rows = layout._pairs(base.vocabulary, layout._window(base.model))
    with eager(base.model):
        expected_N = layout._plain(base.model, rows)
    why = layout._difference(base.model, rows, expected_N, FLASH, 0.0)
    assert ("nats per token off" in why) != align_end


def test_flash_attention_has_no_soft_cap() -> None:
    base = base_of("gemma2")
    rows = layout._pairs(base.vocabulary, 6)
    why = layout._difference(base.model, rows, torch.zeros(21), FLASH, 0.0)
    assert "flash attention has no soft cap" in why


# ---------------------------------------------------------------- what goes wrong silently in transformers


def by_transformers(implementation: str, mask: str) -> float:
    """How far a packed row is off without our attention, in nats per token (root mean square).

    mask  "bool" or "float": one of four dimensions in which everything is right; "none": positions alone
    """
    base = base_of("llama")
    rows = layout._pairs(base.vocabulary, None)
    expected_N = layout._plain(base.model, rows)
    batch = collate(rows, 0, "cpu", packed=True)
    base.model.set_attn_implementation(implementation)
    given: dict[str, Any] = {"input_ids": batch.input_ids_BL, "position_ids": batch.positions_BL, "use_cache": False}
    if mask != "none":
        seen = block_mask(rows)
        given["attention_mask"] = seen if mask == "bool" else torch.zeros(seen.shape).masked_fill(~seen, -1e30)
    with torch.no_grad():
        logprobs = base.model(**given).logits[0].log_softmax(-1)
    return float((logprobs[batch.at_N, batch.targets_N] - expected_N).square().mean().sqrt())


def block_mask(rows: list[Row]) -> Tensor:
    """True where a token of the packed row may look, [1, 1, T, T]: its own answer, its own prompt."""
    owner: list[tuple[int, int]] = []  # group, and answer (prompt: 0)
    for number, (prompt, answers) in enumerate(grouped(rows)):
        owner += [(number, 0)] * len(prompt)
        for k, answer in enumerate(answers):
            owner += [(number, 1 + k)] * (len(answer) - 1)
    seen = [
        [j <= i and owner[i][0] == owner[j][0] and owner[j][1] in (0, owner[i][1]) for j in range(len(owner))]
        for i in range(len(owner))
    ]
    return torch.tensor(seen).view(1, 1, len(owner), len(owner))


@pytest.mark.parametrize(("implementation", "mask"), [("eager", "float"), ("sdpa", "float"), ("sdpa", "bool")])
def test_masks_of_four_dimensions_that_are_right(implementation: str, mask: str) -> None:
    assert by_transformers(implementation, mask) < 1e-5


@pytest.mark.parametrize(("implementation", "mask"), [("eager", "bool"), ("sdpa", "none"), ("eager", "none")])
def test_silent_failures(implementation: str, mask: str) -> None:
    """A boolean mask is added as 0 and 1; jumping positions are taken for other sequences. If one of these
    begins to be right, transformers has changed; until then the check at load must see them."""
    assert by_transformers(implementation, mask) > 100 * layout.NEAR[torch.float32]
