"""Log-probs of given tokens from hidden states, tile by tile, against log_softmax of all logits at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.helpers import base_of, config_of, model_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparring.models import head
from sparring.models.head import Head, surprises

N, D, V = 23, 16, 101
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "cap": {"cap": 3.0},
    "everything": {"bias": True, "scale": 1.7, "cap": 5.0},
}
TILES = (V, 7 * V + 3, N * V, 2**24)  # 1, 7 and all tokens at once; 7 does not divide 23


def made(bias: bool = False, scale: float = 1.0, cap: float | None = None) -> tuple[Head, Tensor, Tensor]:
    """(a frozen head, hidden states, targets)."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(D, V, bias=bias)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    module.requires_grad_(False)
    hidden_ND = torch.randn(N, D, generator=generator, requires_grad=True)
    return Head(module, V, scale, cap), hidden_ND, torch.randint(V, (N,), generator=generator)


def exact(given: Head, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """The definition, in fp64."""
    weight_VD, bias_V = given.module.weight.double(), given.module.bias
    logits_NV = hidden_ND.double() @ weight_VD.T + (0 if bias_V is None else bias_V.double())
    logits_NV = given.scale * logits_NV
    if given.cap is not None:
        logits_NV = given.cap * torch.tanh(logits_NV / given.cap)
    return torch.log_softmax(logits_NV, -1).gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)


def upstream() -> Tensor:
    """What the loss wants of each token's log-prob: of both signs, 0 among them."""
    return torch.linspace(-1, 2, N).round(decimals=1)


def gradient(logprob_N: Tensor, of: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((logprob_N * upstream().to(logprob_N.dtype)).sum(), of))


def off(got: Tensor, expected: Tensor) -> float:
    """Relative difference."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm())


# ---------------------------------------------------------------- a frozen head


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_frozen_head(shape: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.TILE, "cpu", tile)
    given, hidden_ND, targets_N = made(**SHAPES[shape])
    assert given.frozen
    got_N, expected_N = given.logprobs(hidden_ND, targets_N), exact(given, hidden_ND, targets_N)
    assert got_N.dtype == torch.float32
    torch.testing.assert_close(got_N.double(), expected_N, rtol=0, atol=1e-5)
    assert off(gradient(got_N, [hidden_ND])[0], gradient(expected_N, [hidden_ND])[0]) < 1e-5
    with torch.no_grad():
        assert torch.equal(given.logprobs(hidden_ND, targets_N), got_N)


@pytest.mark.parametrize("shape", SHAPES)
def test_surprises(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.TILE, "cpu", 7 * V)
    given, hidden_ND, targets_N = made(**SHAPES[shape])
    logprob_N, entropy_N, variance_N = surprises(given, hidden_ND, targets_N)
    whole_NV = torch.stack([exact(given, hidden_ND, torch.full((N,), token)) for token in range(V)], -1).detach()
    mean_N = (whole_NV.exp() * whole_NV).sum(-1)
    second_N = (whole_NV.exp() * whole_NV.square()).sum(-1)
    torch.testing.assert_close(logprob_N.double(), exact(given, hidden_ND, targets_N).detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy_N.double(), -mean_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance_N.double(), second_N - mean_N.square(), rtol=1e-4, atol=1e-4)


def test_huge_logits_and_sure_tokens() -> None:
    given, hidden_ND, targets_N = made(scale=1000.0)
    got_N = given.logprobs(hidden_ND, targets_N)
    expected_N = exact(given, hidden_ND, targets_N)
    torch.testing.assert_close(got_N.double(), expected_N, rtol=1e-5, atol=1e-2)
    sure_N = (hidden_ND @ given.module.weight.T).argmax(-1)
    assert given.logprobs(hidden_ND, sure_N).max() == 0
    assert torch.isfinite(gradient(got_N, [hidden_ND])[0]).all()


def test_strided_hidden_states() -> None:
    """A view of rows that are not beside each other, as attention's transposed output is."""
    given, hidden_ND, targets_N = made()
    strided_ND = hidden_ND.detach().T.contiguous().T.requires_grad_(True)
    assert not strided_ND.is_contiguous()
    got, expected = given.logprobs(strided_ND, targets_N), given.logprobs(hidden_ND, targets_N)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert off(gradient(got, [strided_ND])[0], gradient(expected, [hidden_ND])[0]) < 1e-6


@pytest.mark.parametrize("frozen", [True, False])
def test_no_tokens(frozen: bool) -> None:
    given, hidden_ND, targets_N = made()
    given.module.requires_grad_(not frozen)
    assert given.logprobs(hidden_ND[:0], targets_N[:0]).shape == (0,)
    assert [part.shape for part in surprises(given, hidden_ND[:0], targets_N[:0])] == [(0,)] * 3


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_no_worse_than_log_softmax_in_fp32(shape: str) -> None:
    """Both take bf16 logits; what the softmax and the gradient add must not be more than there."""
    given, hidden_ND, targets_N = made(**SHAPES[shape])
    given.module.bfloat16()
    half_ND = hidden_ND.detach().bfloat16().requires_grad_(True)
    truth_N = exact(given, half_ND, targets_N)
    truth_ND = gradient(truth_N, [half_ND])[0]
    logits_NV = given.module(half_ND).float() * given.scale
    if given.cap is not None:
        logits_NV = given.cap * torch.tanh(logits_NV / given.cap)
    plain_N = torch.log_softmax(logits_NV, -1).gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
    plain_ND = gradient(plain_N, [half_ND])[0]
    got_N = given.logprobs(half_ND, targets_N)
    got_ND = gradient(got_N, [half_ND])[0]
    assert got_N.dtype == torch.float32
    assert got_ND.dtype == torch.bfloat16
    assert 0 < off(got_N, truth_N) < 1.05 * off(plain_N, truth_N)
    assert 0 < off(got_ND, truth_ND) < 1.5 * off(plain_ND, truth_ND)


# ---------------------------------------------------------------- a head that is trained


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_trained_head(shape: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own weight and bias get their gradients, too; with hidden states that need none, as well."""
    monkeypatch.setitem(head.TILE, "cpu", tile)
    given, hidden_ND, targets_N = made(**SHAPES[shape])
    given.module.requires_grad_(True)
    assert not given.frozen
    wanted = [hidden_ND, *given.module.parameters()]
    got_N, expected_N = given.logprobs(hidden_ND, targets_N), exact(given, hidden_ND, targets_N)
    torch.testing.assert_close(got_N.double(), expected_N, rtol=0, atol=1e-5)
    for got, expected in zip(gradient(got_N, wanted), gradient(expected_N, wanted), strict=True):
        assert off(got, expected) < 1e-5
    alone_N = given.logprobs(hidden_ND.detach(), targets_N)
    expected = gradient(exact(given, hidden_ND, targets_N), [given.module.weight])[0]
    assert off(gradient(alone_N, [given.module.weight])[0], expected) < 1e-5


@pytest.mark.parametrize("kind", ["lora", "copy"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite"])
def test_an_adapter_on_the_head(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA on lm_head, and a trained copy of it, against the logits that the model itself makes."""
    model = model_of(config_of(name, tie_word_embeddings=False)).requires_grad_(False)
    monkeypatch.setitem(head.TILE, "cpu", 7 * model.config.vocab_size)
    lora: dict[str, Any] = {"target_modules": ["lm_head"]}
    chosen = lora if kind == "lora" else {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}
    tuned = get_peft_model(model, LoraConfig(r=4, **chosen), autocast_adapter_dtype=False)
    trained = {key: p for key, p in tuned.named_parameters() if p.requires_grad and "lm_head" in key}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    ids = torch.randint(3, 400, (1, N), generator=torch.Generator().manual_seed(2))
    targets_N = torch.randint(3, 400, (N,), generator=torch.Generator().manual_seed(3))
    given = Head.of(tuned.get_base_model())
    assert not given.frozen
    got_N = given.logprobs(model.get_decoder()(input_ids=ids)[0][0], targets_N)
    logits_NV = tuned(input_ids=ids).logits[0]
    expected_N = torch.log_softmax(logits_NV, -1).gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(got_N, expected_N, rtol=0, atol=1e-5)
    wanted = list(trained.values())
    assert len(wanted) == (2 if kind == "lora" else 1)
    for got, expected in zip(gradient(got_N, wanted), gradient(expected_N, wanted), strict=True):
        assert expected.norm() > 0
        assert off(got, expected) < 1e-5


# ---------------------------------------------------------------- what a model's config says of its head


@pytest.mark.parametrize(
    ("name", "scale", "cap"),
    [("llama", 1, None), ("gpt2", 1, None), ("gemma2", 1, 3.0), ("cohere", 0.25, None), ("granite", 0.25, None)],
)
@pytest.mark.parametrize("tied", [True, False])
def test_heads_of_models(name: str, scale: float, cap: float | None, tied: bool) -> None:
    config = config_of(name, tie_word_embeddings=tied)
    model = model_of(config).requires_grad_(False)
    given = Head.of(model)
    assert (given.scale, given.cap) == (scale, cap)
    assert given.vocabulary == config.vocab_size
    assert given.frozen
    assert (given.module.weight is model.get_input_embeddings().weight) == tied
    ids = torch.randint(3, 400, (1, N), generator=torch.Generator().manual_seed(2))
    targets_N = torch.randint(3, 400, (N,), generator=torch.Generator().manual_seed(3))
    expected_N = model(input_ids=ids).logits[0].log_softmax(-1)[torch.arange(N), targets_N]
    got_N = given.logprobs(model.get_decoder()(input_ids=ids)[0][0], targets_N)
    torch.testing.assert_close(got_N, expected_N, rtol=0, atol=1e-5)
    # trained, a tied head gets the gradients of both its ends
    model.requires_grad_(True)
    weight = model.get_output_embeddings().weight
    again = copy.deepcopy(weight)
    got = gradient(Head.of(model).logprobs(model.get_decoder()(input_ids=ids)[0][0], targets_N), [weight])[0]
    logits_NV = model(input_ids=ids).logits[0]
    expected = gradient(logits_NV.log_softmax(-1)[torch.arange(N), targets_N], [weight])[0]
    assert off(got, expected) < 1e-5
    assert torch.equal(weight, again)


def test_a_head_with_a_bias() -> None:
    """Phi has one; its model's logits are met."""
    from transformers import PhiConfig

    config = PhiConfig(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    model = model_of(config).requires_grad_(False)
    with torch.no_grad():
        model.lm_head.bias.normal_()
    ids = torch.arange(N).unsqueeze(0)
    expected_N = model(input_ids=ids).logits[0].log_softmax(-1)[torch.arange(N), ids[0]]
    got_N = Head.of(model).logprobs(model.get_decoder()(input_ids=ids)[0][0], ids[0])
    torch.testing.assert_close(got_N, expected_N, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- no more than a tile of logits


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return out


@pytest.mark.parametrize("trained", [False, True])
def test_never_more_than_a_tile(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    count, size, rows = 400, 16, 5
    monkeypatch.setitem(head.TILE, "cpu", rows * V + 1)
    module = nn.Linear(size, V, bias=False).requires_grad_(trained)
    given = Head(module, V)
    hidden_ND = torch.randn(count, size, requires_grad=True)
    targets_N = torch.randint(V, (count,))
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    allowed = max(rows * V, count * size, V * size)
    assert allowed < count * V / 5
    with Largest() as seen, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        given.logprobs(hidden_ND, targets_N).sum().backward()
    assert rows * V <= seen.numbers <= allowed
    # what the forward pass keeps: hidden states or their gradient, targets, but no logits
    assert max(kept) <= count * size
    with Largest() as seen:
        surprises(given, hidden_ND, targets_N)
    assert rows * V <= seen.numbers <= allowed


def test_scoring_of_long_answers_has_no_large_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole model: the largest tensor is smaller than the logits of the answers."""
    from sparring.models.scoring import answer_logprobs

    base = base_of("llama")
    monkeypatch.setitem(head.TILE, "cpu", 8 * base.vocabulary)
    rows = [([5, 6, 7], [8] * 100), ([5, 6], [9] * 100)]
    with Largest() as seen, torch.no_grad():
        answer_logprobs(base.model, base, rows)
    assert seen.numbers < 200 * base.vocabulary / 2
