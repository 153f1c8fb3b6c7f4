"""Decoding: the same answers however they are batched, ended and cut as they must be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tests.helpers import ARCHITECTURES, CONTEXT, base_of, disturb, model_of, renderer_of, ring_of
from tests.helpers import byte_tokenizer as tokenizer_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Lfm2Config, Llama4TextConfig, MambaConfig, OpenAIGPTConfig, RecurrentGemmaConfig

from sparring.config import GenerationConfig
from sparring.data.pairs import Prompt
from sparring.errors import ModelError
from sparring.generation.base import Answer
from sparring.generation.local import LocalGenerator
from sparring.generation.play import sample
from sparring.generation.sampling import Keys, choose, stream_keys, uniforms
from sparring.methods.lora import LoRA
from sparring.models.base import Base, wrap_base
from sparring.models.players import Player, Ring
from sparring.models.scoring import score

LENGTHS = (5, 12, 20, 3, 12, 1)
LIMIT = 24
SHIFTS = (0.0, -1e-6, 1e-6)


def player_of(name: str = "llama", end: int | None = None) -> tuple[Any, Base]:
    """A player with an adapter on a tiny base. `end`: the id of the token that ends an answer."""
    base = base_of(name)
    if end is not None:
        base.renderer.end_ids = (end,)
    ring = ring_of(base)
    ring.challenge(Player.untrained(base), seed=0)
    disturb(ring)
    return ring.model.eval(), base


def prompts_of(base: Base, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, base.vocabulary, (size,), generator=generator).tolist() for size in lengths]


def keys_of(count: int) -> Keys:
    return stream_keys(0, 0, range(count), [0] * count)


def generator_of(model: Any, base: Base, **config: Any) -> LocalGenerator:
    return LocalGenerator(model, base, GenerationConfig(**config))


def is_replayed(model: Any, base: Base, prompt: list[int], key: Keys, answer: Answer, **config: Any) -> bool:
    """Whether `choose` takes the same from the logits of one plain forward pass over prompt and answer.

    A random number within 1e-6 of a step of the CDF may fall on either side of it.
    """
    settings = GenerationConfig(**config)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer.ids]), use_cache=False).logits[0]
    rows = logits[len(prompt) - 1 : -1]
    u = np.array([uniforms(key, i)[0] for i in range(len(answer.ids))])
    near = [choose(rows, np.clip(u + shift, 0, 1 - 1e-9), settings.temperature, settings.top_p) for shift in SHIFTS]
    return bool((torch.stack(near) == torch.tensor(answer.ids)).any(dim=0).all())


def a_token_that_comes(model: Any, base: Base) -> int:
    """The token that most of the answers hold, at a place that differs: a good end token for a test."""
    prompts = prompts_of(base)
    answers = generator_of(model, base)(prompts, keys_of(len(prompts)), LIMIT)
    return max(range(3, base.vocabulary), key=lambda token: sum(token in answer.ids for answer in answers))


@cache
def ending_player(name: str = "llama") -> tuple[Any, Base]:
    """A player some of whose answers end, at different places, and some of which do not."""
    model, base = player_of(name, end=-1)
    base.renderer.end_ids = (a_token_that_comes(model, base),)
    return model, base


# ---------------------------------------------------------------- batching


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_do_not_depend_on_batching(name: str) -> None:
    model, base = ending_player(name)
    prompts = prompts_of(base)
    keys = keys_of(len(prompts))
    together = generator_of(model, base)(prompts, keys, LIMIT)
    assert len({len(answer.ids) for answer in together}) > 1, "rows must leave the batch at different times"
    alone = [generator_of(model, base)([p], keys[i : i + 1], LIMIT)[0] for i, p in enumerate(prompts)]
    assert together == alone
    for tokens in (60, 100):
        assert generator_of(model, base, batch_tokens=tokens)(prompts, keys, LIMIT) == together, tokens
    order = np.array([3, 0, 1, 5, 2, 4])
    mixed = generator_of(model, base)([prompts[i] for i in order], keys[order], LIMIT)
    assert mixed == [together[i] for i in order]
    halves = [generator_of(model, base)(prompts[a:b], keys[a:b], LIMIT) for a, b in ((0, 2), (2, 6))]
    assert halves[0] + halves[1] == together


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("config", [{}, {"temperature": 0.7, "top_p": 0.9}], ids=["plain", "nucleus"])
def test_answers_are_chosen_from_the_players_own_distribution(name: str, config: dict[str, float]) -> None:
    model, base = ending_player(name)
    prompts = prompts_of(base)
    keys = keys_of(len(prompts))
    answers = generator_of(model, base, **config)(prompts, keys, LIMIT)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert is_replayed(model, base, prompt, keys[i : i + 1], answer, **config)
        assert not is_replayed(model, base, prompt, keys[i : i + 1] + np.uint64(1), answer, **config)


def test_an_answer_is_one_of_k_and_does_not_know_k() -> None:
    model, base = ending_player()
    rows = [Prompt(100 + i, ids, [4], True, "") for i, ids in enumerate(prompts_of(base))]
    generator = generator_of(model, base)
    one = sample(generator, rows, 0, 0, 1, 30)
    three = sample(generator, rows, 0, 0, 3, 30)
    assert [answers[:1] for answers in three] == one
    assert all(len(answers) == 3 for answers in three)
    assert all(first != second for first, second, _ in three)
    assert sample(generator, rows[::-1], 0, 0, 3, 30)[::-1] == three
    assert sample(generator, rows[2:4], 0, 0, 3, 30) == three[2:4]
    assert sample(generator, rows, 0, 1, 1, 30) != one
    assert sample(generator, rows, 1, 0, 1, 30) != one


def test_bf16_answers_do_not_depend_on_the_padding_of_ids() -> None:
    """In bf16 a different batch may round differently, but what fills the padding may not matter."""
    base = base_of("llama", dtype=torch.bfloat16)
    prompts = prompts_of(base)
    answers = generator_of(base.model, base)(prompts, keys_of(len(prompts)), 20)
    assert generator_of(base.model, base)(prompts, keys_of(len(prompts)), 20) == answers
    base.renderer.tokenizer.pad_token_id = 9
    assert base.pad_id == 9
    assert generator_of(base.model, base)(prompts, keys_of(len(prompts)), 20) == answers


class Watch(torch.nn.Module):
    """The model itself, and a note of the shape of all that it is asked."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.shapes: list[tuple[int, int]] = []

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        self.shapes.append((input_ids.shape[0], input_ids.shape[1]))
        return self.model(input_ids=input_ids, **more)


def mixed_work(base: Base) -> tuple[list[list[int]], Keys]:
    """Prompts of many lengths, some of them several times, not all side by side."""
    prompts = prompts_of(base, (30, 2, 17, 9, 1, 40, 9, 25, 3, 13, 6, 21))
    prompts += [prompts[2], prompts[5], prompts[2], prompts[4], *[prompts[8]] * 4]
    return prompts, keys_of(len(prompts))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_that_enter_and_leave_at_any_time_answer_as_alone(name: str) -> None:
    """Several samples of a prompt, mixed lengths, answers that end early, places that are filled again."""
    model, base = ending_player(name)
    prompts, keys = mixed_work(base)
    alone = [generator_of(model, base)([p], keys[i : i + 1], LIMIT)[0] for i, p in enumerate(prompts)]
    for tokens in (150, 600):
        watch = Watch(model)
        assert generator_of(watch, base, batch_tokens=tokens)(prompts, keys, LIMIT) == alone, tokens
        steps = [rows for rows, columns in watch.shapes if columns == 1]
        if tokens == 150:
            assert any(more > fewer for fewer, more in itertools.pairwise(steps)), "rows must enter later"
        assert sum(steps) <= sum(len(answer.ids) for answer in alone) + len(watch.shapes), (
            "no row goes on after its end"
        )


def test_a_prompt_is_computed_once_for_all_its_samples() -> None:
    model, base = player_of(end=-1)
    (prompt, other) = prompts_of(base, (20, 11))
    prompts = [prompt, other, prompt, prompt, other]
    watch = Watch(model)
    answers = generator_of(watch, base)(prompts, keys_of(5), 4)
    assert watch.shapes == [(2, 19), *[(5, 1)] * 4]
    assert len({tuple(answer.ids) for answer in answers}) == 5


OTHERS: dict[str, Any] = {
    "convolutions": lambda sizes: Lfm2Config(
        **sizes, layer_types=["conv", "full_attention"], conv_L_cache=3, block_auto_adjust_ff_dim=False
    ),
    "chunks": lambda sizes: Llama4TextConfig(
        **sizes, head_dim=8, attention_chunk_size=6, num_local_experts=2, moe_layers=[], intermediate_size_mlp=48
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_layers_that_the_buffers_cannot_hold(kind: str) -> None:
    sizes = {"vocab_size": 420, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    base = wrap_base(model_of(OTHERS[kind](sizes)), renderer_of(tokenizer_of()), kind)
    base.renderer.end_ids = tuple(range(3, 30))
    prompts, keys = mixed_work(base)
    answers = generator_of(base.model, base, batch_tokens=260)(prompts, keys, LIMIT)
    assert {answer.finish for answer in answers} == {"end", "length"}
    rows = [(prompt, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]
    assert [answer.logprob for answer in answers] == pytest.approx(score(base.model, base, rows, 8192), abs=1e-4)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert is_replayed(base.model, base, prompt, keys[i : i + 1], answer)


# ---------------------------------------------------------------- log-probs


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("config", [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0}])
def test_the_log_prob_is_the_players_own(name: str, config: dict[str, float]) -> None:
    """As a pass over prompt and answer gives it, at temperature 1, however the answer was chosen."""
    model, base = ending_player(name)
    prompts, keys = mixed_work(base)
    answers = generator_of(model, base, batch_tokens=260, **config)(prompts, keys, LIMIT)
    rows = [(prompt, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]
    expected = score(model, base, rows, 8192)
    assert [answer.logprob for answer in answers] == pytest.approx(expected, abs=1e-4)
    assert max(expected) < -0.1


class Calls(TorchDispatchMode):
    """Notes what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


STATES: dict[str, Any] = {
    "recurrent_gemma": lambda size: RecurrentGemmaConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, lru_width=32,
        attention_window_size=64,
    ),
    "mamba": lambda size: MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=8),
    "openai-gpt": lambda size: OpenAIGPTConfig(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_states_that_lie_outside_the_cache(name: str) -> None:
    """Rows that cannot change places are decoded one by one; a model that does not go on from a cache is refused."""
    tokenizer = tokenizer_of()
    base = wrap_base(model_of(STATES[name](len(tokenizer))), renderer_of(tokenizer), name)
    prompts = [[5, 6, 7, 8], [5, 6, 7, 8], [9, 10, 11, 12], [9, 8, 7, 6, 5]]
    generator = generator_of(base.model, base)
    if name != "recurrent_gemma":
        with pytest.raises(ModelError, match="cannot be played"):
            generator(prompts, keys_of(4), 8)
        return
    answers = generator(prompts, keys_of(4), 8)
    scored = score(base.model, base, [(p, a.ids) for p, a in zip(prompts, answers, strict=True)], 999)
    assert [answer.logprob for answer in answers] == pytest.approx(scored, abs=1e-4)


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "lm_head"]], ids=["plain", "adapted"])
def test_the_head_is_not_copied_for_every_row(target: Any) -> None:
    """A head on a slice of hidden states is a batched product, which on a CPU copies bf16 weights once per row."""
    base = base_of("llama", dtype=torch.bfloat16)
    ring = Ring(base, LoRA(r=2, alpha=4.0, target_modules=target), "base")
    ring.challenge(Player.untrained(base), seed=0)
    ring.model.requires_grad_(False)
    hidden = torch.randn(8, 5, 32).to(torch.bfloat16)[:, -1:, :]
    with torch.no_grad(), Calls() as trapped:
        torch.nn.functional.linear(hidden, base.model.get_input_embeddings().weight)
    assert "aten::bmm" in trapped.names, "the trap is there"
    head = ring.model.get_output_embeddings()
    head = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    with torch.no_grad(), Calls() as calls:
        head(hidden)
    assert "aten::mm" in calls.names
    assert "aten::bmm" not in calls.names


# ---------------------------------------------------------------- how answers end


def test_the_end_token_is_kept_once_and_said() -> None:
    model, base = ending_player()
    (end,) = base.renderer.end_ids
    prompts = prompts_of(base)
    answers = generator_of(model, base)(prompts, keys_of(len(prompts)), LIMIT)
    assert {answer.finish for answer in answers} == {"end", "length"}
    for answer in answers:
        if answer.finish == "end":
            assert answer.ids[-1] == end
            assert answer.ids.count(end) == 1
        else:
            assert end not in answer.ids
            assert len(answer.ids) == LIMIT


def test_an_end_token_as_the_last_allowed_token_is_an_end() -> None:
    model, base = ending_player()
    prompts = prompts_of(base)
    keys = keys_of(len(prompts))
    answers = generator_of(model, base)(prompts, keys, LIMIT)
    checked = 0
    for i, answer in enumerate(answers):
        if answer.finish == "end" and len(answer.ids) > 1:
            size = len(answer.ids)
            assert generator_of(model, base)([prompts[i]], keys[i : i + 1], size) == [answer]
            (cut,) = generator_of(model, base)([prompts[i]], keys[i : i + 1], size - 1)
            assert cut == Answer(answer.ids[:-1], "length", 0.0)
            checked += 1
    assert checked


def test_a_shorter_limit_gives_the_beginning_of_the_same_answer() -> None:
    model, base = player_of(end=-1)
    prompts = prompts_of(base)
    keys = keys_of(len(prompts))
    long, short = (generator_of(model, base)(prompts, keys, limit) for limit in (25, 9))
    assert [answer.ids[:9] for answer in long] == [answer.ids for answer in short]
    assert {answer.finish for answer in short} == {"length"}


def test_every_end_token_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    model, base = ending_player()
    prompts = prompts_of(base)
    keys = keys_of(len(prompts))
    first = base.renderer.end_ids
    answers = generator_of(model, base)(prompts, keys, LIMIT)
    other = next(answer.ids[2] for answer in answers if answer.finish == "length")
    monkeypatch.setattr(base.renderer, "end_ids", (*first, other))
    both = generator_of(model, base)(prompts, keys, LIMIT)
    assert {answer.ids[-1] for answer in both if answer.finish == "end"} == {*first, other}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prompt_and_answer_never_exceed_the_context(name: str) -> None:
    """Also when a short prompt is padded to a long one's length and goes on for longer than the rest."""
    model, base = player_of(name, end=-1)
    assert base.context == CONTEXT
    prompts = prompts_of(base, (CONTEXT - 8, 5, CONTEXT - 1, CONTEXT, 60))
    keys = keys_of(len(prompts))
    answers = generator_of(model, base)(prompts, keys, 1000)
    assert [len(answer.ids) for answer in answers] == [8, CONTEXT - 5, 1, 0, CONTEXT - 60]
    assert {answer.finish for answer in answers} == {"length"}
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if answer.ids:
            assert is_replayed(model, base, prompt, keys[i : i + 1], answer)
    assert generator_of(model, base)(prompts[3:4], keys[3:4], 10) == [Answer([], "length", 0.0)]


def test_temperature_0_is_greedy() -> None:
    model, base = player_of(end=-1)
    prompts = prompts_of(base)
    answers = generator_of(model, base, temperature=0)(prompts, keys_of(len(prompts)), 20)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for _ in range(20):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert answer.ids == ids[len(prompt) :]
    other = generator_of(model, base, temperature=0)(prompts, keys_of(len(prompts)) + np.uint64(1), 20)
    assert other == answers


def test_first_tokens_are_samples_of_the_player() -> None:
    """Many keys for one prompt: frequencies against the softmax of a plain pass."""
    from scipy import stats

    model, base = player_of(end=-1)
    prompt = prompts_of(base)[1]
    answers = generator_of(model, base)([prompt] * 4000, stream_keys(0, 0, [1] * 4000, range(4000)), 1)
    seen = np.bincount([answer.ids[0] for answer in answers], minlength=base.vocabulary)
    with torch.no_grad():
        p = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1).numpy()
    parts = np.array_split(np.argsort(p), 20)
    expected = np.array([p[part].sum() for part in parts]) * seen.sum()
    observed = np.array([seen[part].sum() for part in parts])
    assert expected.min() > 5
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_no_prompts_no_answers() -> None:
    model, base = player_of()
    assert generator_of(model, base)([], keys_of(0), 5) == []


def test_the_model_is_left_as_it_was() -> None:
    model, base = player_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator_of(model, base)(prompts_of(base), keys_of(len(LENGTHS)), 5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
