"""Prompt and prefix tuning as virtual tokens: the laws of a player, one by one, and PEFT's own numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tests.helpers import CONTEXT, base_of, byte_tokenizer, config_of, model_of, random_rows, renderer_of
from torch import Tensor, nn

from sparring import measuring
from sparring.config import DataConfig, GenerationConfig
from sparring.data.collate import Row
from sparring.data.load import Loaded
from sparring.data.messages import Conversation, Message
from sparring.data.prepare import prepare
from sparring.errors import DataError, InputError
from sparring.evaluation import harness
from sparring.generation.local import LocalGenerator
from sparring.generation.sampling import stream_keys
from sparring.models.base import Base, quiet_dropout, wrap_base
from sparring.models.forward import Layout
from sparring.models.keys import find_keys
from sparring.models.memory import token_bytes
from sparring.models.scoring import answer_logprobs, computed_tokens, score, split_rows
from sparring.models.virtual import (
    SAVED,
    Kind,
    VirtualConfig,
    VirtualEmbedding,
    VirtualKeys,
    from_peft,
    placed,
    to_peft,
    virtual_tokens,
)

KINDS: tuple[Kind, ...] = ("prompt", "prefix")
N = 5
# Keys last made: by k_proj, by k_norm before or after the heads change places, in one matrix; windows; no rotation.
NAMES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt_neo", "gpt2", "gptj")
BOTH = [(name, kind) for name in NAMES for kind in KINDS] + [("gpt_neox", "prompt")]


def config_for(kind: Kind, **more: Any) -> VirtualConfig:
    return VirtualConfig(task_type="CAUSAL_LM", kind=kind, num_virtual_tokens=N, **more)


def disturbed(model: Any, seed: int = 1) -> Any:
    """The adapter far from where it began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def player_on(base: Base, kind: Kind, adapter: str = "default", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return disturbed(get_peft_model(base.model, config_for(kind), adapter_name=adapter)).eval()


def tensors_of(model: Any, adapter: str = "default") -> dict[str, Tensor]:
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


@torch.no_grad()
def by_hand(model: Any, base: Base, row: Row) -> Tensor:
    """log p of each answer token, one plain forward pass with the ids and positions written out."""
    prompt, answer = row
    ids = torch.tensor([base.prelude + prompt + answer])
    embedding = base.model.get_input_embeddings()
    given: dict[str, Tensor] = {}
    if embedding.kind == "prefix":
        given = {"position_ids": torch.tensor([[0] * N + list(range(N, ids.shape[1]))])}
        given["attention_mask"] = torch.ones_like(ids)
    logits = model(input_ids=ids, use_cache=False, **given).logits[0]
    logprobs = torch.log_softmax(logits, dim=-1)
    return torch.stack([logprobs[N + len(prompt) - 1 + i, token] for i, token in enumerate(answer)])


def shared_rows(base: Base) -> list[Row]:
    """Rows of many lengths, some beside others with the same prompt."""
    rows = random_rows(base.vocabulary, count=6)
    return [*rows, (rows[-1][0], rows[0][1]), (rows[-1][0], rows[1][1])]


def folder_of(model: Any, folder: Path, adapter: str = "default") -> Path:
    """An adapter as a run saves it."""
    settings, tensors = to_peft(model.peft_config[adapter], tensors_of(model, adapter))
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"inference_mode": True}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


# ---------------------------------------------------------------- PEFT's own numbers


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_plain_peft_gives_the_same_logprobs(name: str, kind: Kind, tmp_path: Path) -> None:
    base = base_of(name)
    rows = shared_rows(base)
    bare = torch.tensor(score(base.model, base, rows, 4096))
    model = player_on(base, kind)
    ours = torch.tensor(score(model, base, rows, 4096))
    assert (ours - bare).abs().max() > 0.01  # little, where every layer has a window that hides them
    folder = folder_of(model, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(model.unload(), folder).eval()
    lengths = [len(prompt) + len(answer) for prompt, answer in rows]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    for index, (prompt, answer) in enumerate(rows):
        ids[index, : lengths[index]] = torch.tensor(prompt + answer)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)
    with torch.no_grad():
        padded = theirs(input_ids=ids, attention_mask=mask.long()).logits[:, -ids.shape[1] :].log_softmax(-1)
        for index, (prompt, answer) in enumerate(rows):
            single = theirs(input_ids=torch.tensor([prompt + answer])).logits[0, -lengths[index] :].log_softmax(-1)
            for logprobs in (padded[index], single):
                at = range(len(prompt) - 1, lengths[index] - 1)
                said = sum(logprobs[place, token] for place, token in zip(at, answer, strict=True))
                assert abs(said - ours[index]) < 1e-5 * max(1, len(answer))


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_rows_in_every_layout_are_single_rows(name: str, kind: Kind) -> None:
    """Packed with shared prompts, padded, and through the model's own head."""
    base = base_of(name)
    model, rows = player_on(base, kind), shared_rows(base)
    expected = torch.stack([by_hand(model, base, row).double().sum() for row in rows])
    assert base.layout.packed == (name not in ("gpt_neo", "gptj"))
    matrix, gradients = next(p for p in model.parameters() if p.requires_grad), []
    for layout in (Layout(), Layout(direct=True), base.layout):
        shown = dataclasses.replace(base, layout=layout)
        got = answer_logprobs(model, shown, rows).logprob_A
        torch.testing.assert_close(got.detach(), expected, rtol=1e-6, atol=5e-5)
        got.sum().backward()
        gradients.append(matrix.grad)
        matrix.grad = None
        torch.testing.assert_close(gradients[-1], gradients[0], rtol=1e-4, atol=1e-5)
        assert gradients[0].abs().max() > 0
        single = [score(model, shown, [row], 4096)[0] for row in rows]
        torch.testing.assert_close(torch.tensor(single, dtype=torch.float64), expected, rtol=1e-6, atol=5e-5)


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_play_and_learn_see_the_same(name: str, kind: Kind) -> None:
    """Log-probs caught while decoding are those of scoring, prompts of one token and shared ones included."""
    base = base_of(name)
    model = player_on(base, kind)
    prompts = [row[0] for row in random_rows(base.vocabulary, seed=3, count=5)]
    prompts += [prompts[0], prompts[0][:1]]
    keys = stream_keys(0, 0, range(len(prompts)), [0] * len(prompts))
    answers = LocalGenerator(model, base, GenerationConfig(batch_tokens=150))(prompts, keys, 20)
    assert all(token < base.vocabulary for answer in answers for token in answer.ids)
    scored = score(model, base, [(p, a.ids) for p, a in zip(prompts, answers, strict=True)], 4096)
    assert scored == pytest.approx([answer.logprob for answer in answers], abs=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_virtual_tokens_count_in_the_context_and_the_budget(kind: Kind) -> None:
    base = base_of("gpt2")
    rows = shared_rows(base)
    bare, few = computed_tokens(base, rows), split_rows(range(8), [[row] for row in rows], base, 60)
    model = player_on(base, kind)
    prompt = list(range(3, 3 + CONTEXT - N - 4))
    answers = LocalGenerator(model, base, GenerationConfig())([prompt], stream_keys(0, 0, [0], [0]), 99)
    assert len(answers[0].ids) <= 4
    assert computed_tokens(base, rows) == bare + 6 * N  # two of the eight share another's prompt
    separate = dataclasses.replace(base, layout=Layout(direct=True))
    assert computed_tokens(separate, rows) == sum(N + len(p) + len(a) - 1 for p, a in rows)
    assert len(split_rows(range(8), [[row] for row in rows], base, 60)) > len(few)
    assert token_bytes(model, base, rows) > 0


def test_data_leave_room_for_virtual_tokens() -> None:
    tokenizer = byte_tokenizer()
    chats = [Conversation((Message("user", "x" * size), Message("assistant", "yes")), "a", True) for size in (5, 40)]
    loaded = Loaded(chats, chats, {}, "", "", [])
    lengths = {}
    for virtual in (0, 30):
        sides, counts = prepare(loaded, renderer_of(tokenizer), DataConfig(), 80, virtual=virtual)
        lengths[virtual] = [len(row.prompt_ids) + len(row.real_ids) for row in sides["train"]]
        assert counts["train_examples"] == len(lengths[virtual])
    assert max(lengths[0]) > 50 >= max(lengths[30])
    with pytest.raises(DataError, match="context is 50 tokens beside 30 virtual ones; give at most 50"):
        prepare(loaded, renderer_of(tokenizer), DataConfig(max_length=60), 80, virtual=30)


# ---------------------------------------------------------------- the base


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neo"])
def test_the_base_is_untouched(name: str, kind: Kind) -> None:
    base = base_of(name)
    rows = shared_rows(base)
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    modules, scores = dict(base.model.named_modules()), score(base.model, base, rows, 4096)
    model = player_on(base, kind)
    assert base.virtual == N
    assert base.prelude == list(range(base.vocabulary, base.vocabulary + N))
    ids = torch.arange(base.vocabulary).unsqueeze(0)
    embedding = base.model.get_input_embeddings()
    assert torch.equal(embedding(ids), embedding.base_layer(ids))
    assert torch.equal(embedding(torch.cat([torch.tensor([base.prelude]), ids], 1))[:, N:], embedding.base_layer(ids))
    answer_logprobs(model, base, rows).logprob_A.sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is not None] == [
        key for key, p in model.named_parameters() if key.endswith("sparring_virtual_rows.default")
    ]
    with model.disable_adapter():
        assert base.virtual == 0
        assert score(model, base, rows, 4096) == scores
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_and_unload()
    assert model.unload() is base.model
    assert base.prelude == []
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert dict(base.model.named_modules()) == modules
    assert score(base.model, base, rows, 4096) == scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo", "gemma3"])
def test_layers_computed_again_give_the_same(name: str, kind: Kind) -> None:
    base = base_of(name)
    model, rows = player_on(base, kind).train(), shared_rows(base)
    matrix = next(p for p in model.parameters() if p.requires_grad)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
        logprob_A = answer_logprobs(model, base, rows).logprob_A
        logprob_A.sum().backward()
        found.append((logprob_A.detach(), matrix.grad))
        matrix.grad = None
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].abs().sum() > 0
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)


def test_a_call_between_forward_and_backward_is_not_silently_taken() -> None:
    """Layers that are computed again look at the latest call's tokens: another shape must raise."""
    base = base_of("llama")
    model, rows = player_on(base, "prefix").train(), shared_rows(base)
    base.model.gradient_checkpointing_enable({"use_reentrant": False})
    logprob_A = answer_logprobs(model, base, rows).logprob_A
    with torch.no_grad():
        answer_logprobs(model, base, rows[:2])
    with pytest.raises(RuntimeError):
        logprob_A.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("four", [True, False], ids=["nf4", "int8"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.filterwarnings("ignore")
def test_quantised_bases(name: str, four: bool, kind: Kind) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    tokenizer = byte_tokenizer()
    model = model_of(quiet_dropout(config_of(name, tokenizer)))
    for parent in list(model.get_decoder().modules()):
        for child, linear in list(parent.named_children()):
            if type(linear) is nn.Linear:
                sizes, bias = (linear.in_features, linear.out_features), linear.bias is not None
                made: Any = (
                    bitsandbytes.nn.Linear4bit(*sizes, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
                    if four
                    else bitsandbytes.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
                )
                made.load_state_dict(linear.state_dict())
                setattr(parent, child, made.to("cpu"))
    base = wrap_base(model, renderer_of(tokenizer), "quantised")
    rows = shared_rows(base)
    before = score(base.model, base, rows, 4096)
    player = player_on(base, kind)
    scores = answer_logprobs(player, base, rows).logprob_A
    scores.sum().backward()
    assert all(p.grad is None or p.grad.abs().sum() > 0 for p in player.parameters())
    expected = torch.stack([by_hand(player, base, row).double().sum() for row in rows])
    torch.testing.assert_close(scores.detach(), expected, rtol=1e-5, atol=1e-3)
    player.unload()
    assert score(base.model, base, rows, 4096) == before


def test_trained_in_fp32_on_a_bf16_base() -> None:
    for kind in KINDS:
        base = base_of("llama", dtype=torch.bfloat16)
        model = player_on(base, kind)
        matrix = tensors_of(model)[SAVED]
        assert matrix.dtype == torch.float32
        embedding = base.model.get_input_embeddings()
        assert embedding(torch.tensor([[*base.prelude, 3]])).dtype == torch.bfloat16
        rows = shared_rows(base)
        together = answer_logprobs(model, base, rows).logprob_A
        expected = torch.stack([by_hand(model, base, row).double().sum() for row in rows])
        assert (together.detach() - expected).abs().max() < 0.5
        together.sum().backward()


def test_lm_eval_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would measure the base: virtual tokens are none of the harness's."""
    base = base_of("llama")
    player_on(base, "prompt")
    ring = SimpleNamespace(base=base, seat=lambda player: base.model)
    monkeypatch.setattr(harness, "need_harness", lambda: None)
    monkeypatch.setattr(measuring, "find_run", lambda *_: tmp_path)
    monkeypatch.setattr(measuring, "open_player", lambda *_: SimpleNamespace(ring=ring, player=None))
    monkeypatch.setattr(measuring, "player_name", lambda *_: "sft")
    with pytest.raises(InputError, match="5 virtual tokens would be left out"):
        measuring.bench_run("run", tmp_path, "arc_easy", None, "sft", None)


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neo"])
def test_save_and_load_is_the_identity(name: str, kind: Kind, tmp_path: Path) -> None:
    base = base_of(name)
    rows = shared_rows(base)
    model = player_on(base, kind)
    scores, tensors = score(model, base, rows, 4096), {k: v.clone() for k, v in tensors_of(model).items()}
    settings, saved = to_peft(model.peft_config["default"], tensors)
    folder = folder_of(model, tmp_path / "adapter")
    model.unload()
    config, found = from_peft(
        json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")
    )
    assert to_peft(config, found)[0] == settings | {"inference_mode": True}
    assert from_peft(settings, saved)[0] == dataclasses.replace(config, inference_mode=settings["inference_mode"])
    again = get_peft_model(base.model, config, adapter_name="other")
    outcome = set_peft_model_state_dict(again, found, adapter_name="other")
    assert not outcome.unexpected_keys
    assert list(tensors_of(again, "other")) == list(tensors) == [SAVED]
    assert torch.equal(tensors_of(again, "other")[SAVED], tensors[SAVED])
    assert score(again.eval(), base, rows, 4096) == scores


def test_adapters_by_name() -> None:
    """Several on one base, of both kinds; one plays."""
    base = base_of("llama")
    rows = shared_rows(base)
    alone = {}
    for number, kind in enumerate(KINDS):
        model = player_on(base, kind, kind, seed=number)
        alone[kind] = score(model, base, rows, 4096), tensors_of(model, kind)
        model.unload()
    model = get_peft_model(base.model, config_for("prompt"), adapter_name="prompt")
    model.add_adapter("prefix", config_for("prefix"))
    for kind in KINDS:
        set_peft_model_state_dict(model, alone[kind][1], adapter_name=kind)
    for kind in (*KINDS, "prompt"):
        model.set_adapter(kind)
        trained = [key for key, p in model.named_parameters() if p.requires_grad]
        assert [key.rpartition(".")[2] for key in trained] == [kind]
        assert all(f".{kind}." in f"{key}." for key in trained)
        assert score(model.eval(), base, rows, 4096) == alone[kind][0]
    with pytest.raises(ValueError, match="prompt, prefix"):
        model.base_model.set_adapter(["prompt", "prefix"])
    with pytest.warns(UserWarning, match="active"):
        model.delete_adapter("prompt")
    assert base.model.get_input_embeddings().kind == "prefix"
    assert list(tensors_of(model, "prefix")) == [SAVED]
    model.delete_adapter("prefix")
    assert base.virtual == 0
    bare = model.unload()
    assert not any(isinstance(module, VirtualEmbedding | VirtualKeys) for module in bare.modules())


def test_another_bases_tokens_are_refused() -> None:
    config = from_peft(*to_peft(player_on(base_of("llama"), "prefix").peft_config["default"], {SAVED: torch.ones(1)}))
    with pytest.raises(ValueError, match="another base: token_dim is 16, but this base has 32"):
        get_peft_model(base_of("gpt2").model, config[0])
    with pytest.raises(ValueError, match="LORA holds no virtual tokens"):
        from_peft({"peft_type": "LORA"}, {})


# ---------------------------------------------------------------- the start


def test_a_prompt_starts_from_real_tokens() -> None:
    base = base_of("llama")
    weight = base.model.get_input_embeddings().weight.clone()
    started = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = get_peft_model(base.model, config_for("prompt", start="tokens"))
        started.append(tensors_of(model)[SAVED])
        model.unload()
    assert torch.equal(started[0], started[1])
    assert not torch.equal(started[0], started[2])
    assert all((weight == row).all(dim=1).any() for row in started[0])
    model = get_peft_model(base.model, config_for("prompt", init_ids=[7, 9]))
    assert torch.equal(tensors_of(model)[SAVED], weight[[7, 9, 7, 9, 7]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_from_small_noise(kind: Kind) -> None:
    base = base_of("llama")
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = get_peft_model(base.model, config_for(kind))
        drawn.append(tensors_of(model)[SAVED].clone())
        model.unload()
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert 0.01 < drawn[0].std() < 0.03


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "gpt_neo"])
def test_a_prefix_starts_from_what_the_base_makes_of_tokens(name: str) -> None:
    """Values as in the cache of a plain pass, and keys where nothing is rotated; as many tokens as keys have heads."""
    base = base_of(name)
    ids = [7, 9, 11, 4]
    config = VirtualConfig(task_type="CAUSAL_LM", kind="prefix", num_virtual_tokens=4, init_ids=ids)
    with torch.no_grad():
        cache = base.model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
    rows = tensors_of(get_peft_model(base.model, config))[SAVED].unflatten(1, (2 * len(cache.layers), -1))
    for number, layer in enumerate(cache.layers):
        if name != "gemma3" or number:  # its first layer has a window
            torch.testing.assert_close(rows[:, 2 * number + 1], layer.values[0].transpose(0, 1).flatten(1))
            told = slice(None) if name.startswith("gpt") else slice(0, 1)
            torch.testing.assert_close(rows[told, 2 * number], layer.keys[0].transpose(0, 1).flatten(1)[told])


def test_positions_of_a_prefix() -> None:
    base = base_of("llama")
    ids = torch.tensor([[*range(base.vocabulary, base.vocabulary + N), 4, 5, 6]])
    assert placed(base.model, ids) is None
    player_on(base, "prefix")
    assert placed(base.model, ids).tolist() == [[0] * N + [5, 6, 7]]
    assert virtual_tokens(base.model) == N


@pytest.mark.parametrize("name", ["gpt_neox", "mamba", "recurrent_gemma"])
def test_bases_whose_keys_are_not_found_have_no_prefix(name: str) -> None:
    base = base_of(name)
    with pytest.raises(ValueError, match=r"looks for k_norm.*prompt tuning or lora work with this base"):
        get_peft_model(base.model, config_for("prefix"))
    assert base.virtual == 0


def test_keys_that_are_scaled_later_are_refused() -> None:
    """A rotation that also scales is not the identity at position 0."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    base = base_of("llama", rope_parameters=rope)
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        find_keys(base.model, [3, 4, 5])
