"""Scoring against one unpadded forward pass per answer, for every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import (
    ARCHITECTURES,
    DROPOUTS,
    base_of,
    byte_tokenizer,
    config_of,
    disturb,
    model_of,
    plain_logprobs,
    random_rows,
    renderer_of,
    ring_of,
    save_base,
)

from sparring.config import ModelConfig
from sparring.data.collate import packed_tokens
from sparring.models import head, scoring
from sparring.models.base import Base, load_base, load_renderer, read_config, wrap_base
from sparring.models.players import Player
from sparring.models.scoring import answer_logprobs, score

BUDGETS = (1, 60, 333, 8192)  # tokens per micro-batch: every row alone … all at once


def played(base: Base, adapter: bool) -> Any:
    """The base itself, or a player far from it."""
    if not adapter:
        return base.model
    ring = ring_of(base)
    ring.challenge(Player.untrained(base), seed=0)
    disturb(ring)
    return ring.model.eval()


@pytest.mark.parametrize("adapter", [False, True], ids=["base", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_sums_of_plain_logprobs(name: str, adapter: bool) -> None:
    base = base_of(name)
    rows = random_rows(base.vocabulary)
    assert len({len(prompt) for prompt, _ in rows}) > 4
    assert max(len(prompt) for prompt, _ in rows) > 6, "longer than the windows"
    model = played(base, adapter)
    expected = torch.tensor([plain_logprobs(model, row).sum().item() for row in rows])
    for tokens in BUDGETS:
        got = torch.tensor(score(model, base, rows, tokens))
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5, msg=f"budget {tokens}")
    if adapter:
        with model.disable_adapter():
            without = torch.tensor(score(model, base, rows, 8192))
        assert (without - expected).abs().mean() > 0.5, "the adapter must matter, or this test shows nothing"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_window_is_at_work(name: str) -> None:
    """The architectures with local attention do not see the first token from far behind it; the others do."""
    local = {"mistral": {"sliding_window": 6}, "gpt_neo": {"attention_types": [[["local"], 2]]}}
    base = base_of(name)
    if name in local:
        config = config_of(name, byte_tokenizer())
        for key, value in local[name].items():
            setattr(config, key, value)
        if name == "gpt_neo":
            config.attention_layers = ["local", "local"]
        base = wrap_base(model_of(config), renderer_of(byte_tokenizer()), name)
    answer = [7, 8, 9]
    prompts = [[first, *range(20, 50)] for first in (5, 6)]
    one, other = score(base.model, base, [(prompt, answer) for prompt in prompts], 8192)
    assert (one == pytest.approx(other, abs=1e-6)) == (name in local)


def test_the_order_of_rows_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of("llama")
    rows = random_rows(base.vocabulary, count=17)
    expected = score(base.model, base, rows, 8192)
    assert score(base.model, base, rows[::-1], 8192)[::-1] == pytest.approx(expected, rel=1e-6, abs=1e-5)
    monkeypatch.setitem(head.TILE, "cpu", 3 * base.vocabulary)
    assert score(base.model, base, rows, 8192) == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_one_prompt_for_all_rows_keeps_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a budget of one token scores every row alone, which is how rounding noise is measured."""
    base = base_of("llama")
    rows = [([5, 6, 7, 8], answer) for _, answer in random_rows(base.vocabulary, count=40)]
    seen: list[int] = []

    def noted(model: Any, of: Base, given: Any) -> Any:
        seen.append(packed_tokens(given))
        return answer_logprobs(model, of, given)

    monkeypatch.setattr(scoring, "answer_logprobs", noted)
    expected = score(base.model, base, rows, 8192)
    assert len(seen) == 1
    for tokens in (1, 60):
        seen.clear()
        assert score(base.model, base, rows, tokens) == pytest.approx(expected, rel=1e-6, abs=1e-5)
        assert max(seen) <= max(tokens, 4 + 20)
    assert len(seen) > 5


def test_neither_prompt_nor_padding_is_counted() -> None:
    base = base_of("gpt2")
    rows = random_rows(base.vocabulary)
    scores = answer_logprobs(base.model, base, rows)
    assert scores.tokens_A.tolist() == [len(answer) for _, answer in rows]
    (prompt, answer) = rows[0]
    alone = score(base.model, base, [(prompt, answer)], 8192)[0]
    longer = score(base.model, base, [(prompt, answer), (prompt, answer * 3)], 8192)[0]
    assert longer == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bf16_is_close_to_fp32(name: str) -> None:
    half = base_of(name, dtype=torch.bfloat16)
    full = base_of(name)
    with torch.no_grad():
        for mine, theirs in zip(full.model.parameters(), half.model.parameters(), strict=True):
            mine.copy_(theirs)
    rows = random_rows(half.vocabulary)
    assert half.dtype == torch.bfloat16
    root = torch.tensor([len(answer) for _, answer in rows]).sqrt()
    got = torch.tensor(score(half.model, half, rows, 8192))
    expected = torch.tensor(score(full.model, full, rows, 8192))
    assert ((got - expected).abs() / root).max() < 0.15
    # A token's log-prob comes from fp32 sums: it is no multiple of what bf16 can hold.
    assert (got != got.bfloat16().float()).any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_mode_scores_as_evaluation_mode(name: str, tmp_path: Path) -> None:
    """Dropout in the base's own config is off: the player is its opponent bit for bit at the first step."""
    folder = save_base(tmp_path, name, byte_tokenizer(), **DROPOUTS[name])
    config = ModelConfig(base=str(folder), device="cpu")
    for key in DROPOUTS[name]:
        assert getattr(read_config(folder, config), key) == 0
    base = load_base(folder, config, load_renderer(folder, config))
    model = played(base, adapter=True)
    rows = random_rows(base.vocabulary)
    evaluated = score(model, base, rows, 500)
    assert score(model.train(), base, rows, 500) == evaluated
