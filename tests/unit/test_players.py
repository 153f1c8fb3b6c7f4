"""Players taking turns on one base: exact copies, an untouched base, files that are what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers import (
    ARCHITECTURES,
    base_of,
    config_of,
    disturb,
    make_player,
    model_of,
    random_rows,
    ring_of,
)

from sparring.errors import ConfigError, LawBroken, ModelError
from sparring.methods.lora import LoRA
from sparring.models.base import Base
from sparring.models.players import Player, Ring, fingerprint_tensors
from sparring.models.scoring import score

HOLDS = ("continue", "merge", "stack")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def scores(model: Any, base: Base) -> list[float]:
    return score(model, base, random_rows(base.vocabulary, count=5), 8192)


def state_of(base: Base) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in base.model.state_dict().items()}


def same_bytes(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return fingerprint_tensors(one) == fingerprint_tensors(other)


def chain(ring: Ring, hold: str, folder: Path, length: int = 2) -> list[Player]:
    """theta_0 … , each a disturbed challenger of the one before."""
    players = [Player.untrained(ring.base, hold)]
    for number in range(length):
        players.append(make_player(ring, players[-1], folder, f"theta_{number}", seed=number + 1))
    return players


# ---------------------------------------------------------------- the challenger is its opponent


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_challenger_equals_its_opponent_bit_for_bit(name: str, hold: str, kind: str, tmp_path: Path) -> None:
    base = base_of(name, dtype=TYPES[kind])
    ring = ring_of(base)
    seen = []
    for player in chain(ring, hold, tmp_path):
        opponent = scores(ring.seat(player), base)
        fingerprint = ring.seated
        model = ring.challenge(player, seed=9)
        assert scores(model, base) == opponent
        assert scores(model.train(), base) == opponent
        assert ring.seated == fingerprint == player.fingerprint
        disturb(ring)
        assert scores(ring.model, base) != opponent
        seen.append(opponent)
    assert len({tuple(values) for values in seen}) == 3


@pytest.mark.parametrize("hold", HOLDS)
def test_only_the_challengers_adapter_trains(hold: str, tmp_path: Path) -> None:
    base = base_of("llama")
    ring = ring_of(base)
    for player in chain(ring, hold, tmp_path):
        ring.challenge(player, seed=0)
        trained = ring.trainable()
        assert len(trained) == 2 * 2 * 7
        assert all("lora_A" in key or "lora_B" in key for key in trained)
        frozen = {name: p.detach().clone() for name, p in ring.model.named_parameters() if name not in trained}
        ring.model(input_ids=torch.tensor([[5, 6, 7]])).logits.square().sum().backward()
        torch.optim.SGD(ring.model.parameters(), lr=1.0).step()
        after = dict(ring.model.named_parameters())
        assert all(torch.equal(value, after[name]) for name, value in frozen.items())
        assert all(after[name].grad is None for name in frozen)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
        assert not any(p.requires_grad for p in ring.seat(player).parameters())


def test_rank_grows_only_where_it_must(tmp_path: Path) -> None:
    for hold, adapters in {"continue": 1, "merge": 2, "stack": 2}.items():
        folder = tmp_path / hold
        player = chain(ring_of(base_of("llama")), hold, folder)[-1]
        assert len(player.adapters) == adapters


def test_a_zero_adapter_has_no_gradient_for_a_and_one_for_b() -> None:
    """Law 6: policy equals reference, and only B moves at first."""
    ring = ring_of(base_of("llama"))
    ring.challenge(Player.untrained(ring.base), seed=0)
    ring.model(input_ids=torch.tensor([[5, 6, 7]])).logits.square().sum().backward()
    for name, parameter in ring.trainable().items():
        assert parameter.grad is not None
        assert (parameter.grad.abs().max() == 0) == ("lora_A" in name), name


def test_fresh_adapters_come_from_their_seed() -> None:
    ring = ring_of(base_of("llama"))
    player = Player.untrained(ring.base)
    made = []
    for seed in (1, 1, 2):
        ring.challenge(player, seed)
        made.append(fingerprint_tensors(ring.trainable()))
    assert made[0] == made[1] != made[2]


# ---------------------------------------------------------------- the base is never touched


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo"])
def test_the_base_keeps_its_bytes(name: str, kind: str, tmp_path: Path) -> None:
    base = base_of(name, dtype=TYPES[kind])
    before, first = state_of(base), scores(base.model, base)
    ring = ring_of(base)
    for hold in HOLDS:
        players = chain(ring, hold, tmp_path / hold)
        for player in (*players, *players[::-1]):
            ring.seat(player)
            ring.challenge(player, seed=3)
            disturb(ring)
        untrained = ring.seat(players[0])
        assert untrained is base.model
        assert same_bytes(before, state_of(base)), hold
        assert scores(untrained, base) == first


def test_a_merged_player_does_change_the_weights_while_it_sits(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    base = base_of("llama")
    ring = ring_of(base)
    player = chain(ring, "merge", tmp_path)[-1]
    ring.seat(Player.untrained(base))
    before = state_of(base)
    ring.seat(player)
    assert not same_bytes(before, state_of(base))


@pytest.mark.parametrize("hold", HOLDS)
def test_players_in_any_order_are_themselves(hold: str, tmp_path: Path) -> None:
    base = base_of("llama")
    ring = ring_of(base)
    players = chain(ring, hold, tmp_path)
    expected = [scores(ring.seat(player), base) for player in players]
    for index in (2, 0, 1, 1, 2, 0):
        assert scores(ring.seat(players[index]), base) == expected[index]


# ---------------------------------------------------------------- merged and attached


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo"])
def test_merged_equals_attached(name: str, tmp_path: Path) -> None:
    """Law 12, for a chain of two."""
    base = base_of(name)
    ring = ring_of(base)
    stacked = chain(ring, "stack", tmp_path)[-1]
    merged = Player(stacked.adapters, "merge", stacked.fingerprint)
    ids = torch.tensor([[5, 9, 3, 77, 20, 11]])
    with torch.no_grad():
        attached = torch.log_softmax(ring.seat(stacked)(input_ids=ids).logits, -1)
        inside = torch.log_softmax(ring.seat(merged)(input_ids=ids).logits, -1)
        without = torch.log_softmax(ring.seat(Player.untrained(base))(input_ids=ids).logits, -1)
    assert (attached - inside).abs().max() < 1e-5
    assert (attached - without).abs().max() > 0.1


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_for_playing_and_back_bit_for_bit(name: str, hold: str, kind: str, tmp_path: Path) -> None:
    """Law 12: the same player while merged, and the very base and the very attached player afterwards."""
    base = base_of(name, dtype=TYPES[kind])
    ring = ring_of(base)
    players = chain(ring, hold, tmp_path)
    ring.seat(Player.untrained(base))
    before = state_of(base)
    nobody = scores(base.model, base)
    for player in players[1:]:
        attached = scores(ring.seat(player), base)
        inside = scores(ring.seat(player, merged=True), base)
        assert ring.seated == player.fingerprint
        assert not any("lora" in name for name, _ in ring.model.named_parameters())
        assert not any(p.requires_grad for p in ring.model.parameters())
        moved = max(abs(a - b) for a, b in zip(attached, nobody, strict=True))
        gap = max(abs(a - b) for a, b in zip(attached, inside, strict=True))
        assert gap < (1e-3 if kind == "fp32" else 0.2 * moved), (gap, moved)
        assert moved > 0.1
        assert scores(ring.seat(player), base) == attached
    ring.seat(players[-1], merged=True)
    ring.seat(Player.untrained(base))
    assert same_bytes(before, state_of(base))
    assert not ring._folded._weights


def test_only_weights_that_change_are_kept_twice(tmp_path: Path) -> None:
    base = base_of("llama")
    ring = Ring(base, LoRA(r=2, alpha=4.0, target_modules=["q_proj"]), "base")
    ring.seat(chain(ring, "stack", tmp_path)[-1], merged=True)
    assert sorted(ring._folded._weights) == [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("hold", HOLDS)
def test_saved_and_loaded_is_the_same_player(hold: str, tmp_path: Path) -> None:
    base = base_of("llama")
    ring = ring_of(base)
    before = chain(ring, hold, tmp_path)[-1]
    ring.challenge(before, seed=0)
    disturb(ring, seed=8)
    weights = {name.split(".weight")[0]: p.detach().clone() for name, p in ring.trainable().items()}
    expected = scores(ring.model.eval(), base)
    (tmp_path / "next").mkdir()
    saved = ring.save(tmp_path / "next", before, tmp_path, "next")
    loaded = Player.load(tmp_path / "next")
    assert loaded == saved
    got = scores(ring.seat(loaded), base)
    assert got == (pytest.approx(expected, abs=1e-4) if hold == "merge" else expected)
    tensors = load_file(tmp_path / "next" / "adapter_model.safetensors")
    assert len(tensors) == len(weights)
    assert fingerprint_tensors(dict(enumerate_sorted(tensors))) == fingerprint_tensors(dict(enumerate_sorted(weights)))


def enumerate_sorted(tensors: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(str(index), tensors[name]) for index, name in enumerate(sorted(tensors))]


@pytest.mark.parametrize("hold", HOLDS)
def test_a_run_folder_can_be_moved(hold: str, tmp_path: Path) -> None:
    ring = ring_of(base_of("llama"))
    player = chain(ring, hold, tmp_path / "here")[-1]
    expected = scores(ring.seat(player), ring.base)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = Player.load(tmp_path / "there" / "theta_1")
    assert moved.fingerprint == player.fingerprint
    assert scores(ring.seat(moved), ring.base) == expected


def test_the_untrained_player_is_a_folder_too(tmp_path: Path) -> None:
    ring = ring_of(base_of("llama"))
    ring.save_start(tmp_path, "stack", 0, tmp_path.parent, tmp_path.name)
    assert Player.load(tmp_path) == Player.untrained(ring.base, "stack")
    with pytest.raises(ModelError, match="holds no player"):
        Player.load(tmp_path / "elsewhere")


def test_fingerprints_follow_the_weights(tmp_path: Path) -> None:
    base, other = base_of("llama"), base_of("llama", seed=1)
    ring = ring_of(base)
    players = chain(ring, "continue", tmp_path)
    again = make_player(ring, players[0], tmp_path, "again", seed=1)
    changed = make_player(ring, players[0], tmp_path, "changed", seed=2)
    assert again.fingerprint == players[1].fingerprint
    assert len({player.fingerprint for player in (*players, changed, Player.untrained(other))}) == 5
    assert ring.seat(players[2]) is ring.model
    assert ring.seated == players[2].fingerprint


def test_fingerprint_of_tensors() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    first = fingerprint_tensors(tensors)
    assert fingerprint_tensors({"b": torch.ones(4), "a": torch.zeros(2, 3)}) == first
    changes: list[dict[str, torch.Tensor]] = [
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": -torch.zeros(2, 3)},
        {"b": torch.tensor([1, 1, 1, 1 + 2**-23])},
        {"c": torch.ones(4)},
    ]
    assert len({fingerprint_tensors({**tensors, **change}) for change in changes} | {first}) == 6
    strided = torch.arange(6.0).reshape(2, 3)
    assert fingerprint_tensors({"x": strided.T}) == fingerprint_tensors({"x": strided.T.contiguous()})
    assert fingerprint_tensors({"x": torch.ones(3).bfloat16()}) != fingerprint_tensors({"x": torch.ones(3).half()})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_is_an_ordinary_peft_adapter(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base = base_of(name)
    ring = ring_of(base)
    player = chain(ring, "continue", tmp_path)[-1]
    ids = torch.tensor([[5, 9, 3, 77, 20, 11, 8, 8]])
    with torch.no_grad():
        expected = ring.seat(player)(input_ids=ids).logits
        fresh = model_of(config_of(name, base.renderer.tokenizer))
        plain = PeftModel.from_pretrained(fresh, str(player.adapters[0])).eval()
        assert torch.equal(plain(input_ids=ids).logits, expected)
    assert not any(p.requires_grad for p in plain.parameters())


def test_adapter_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    files = ("adapter_config.json", "adapter_model.safetensors", "player.json")
    made = []
    for place in ("one", "another/much/deeper"):
        folder = tmp_path / place
        chain(ring_of(base_of("llama")), "stack", folder)
        made.append([(folder / "theta_1" / file).read_bytes() for file in files])
        assert sorted(path.name for path in (folder / "theta_1").iterdir()) == sorted(files)
    assert made[0] == made[1]
    for content in made[0]:
        assert str(tmp_path).encode() not in content
    config = json.loads(made[0][0])
    assert config["base_model_name_or_path"] == "base"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["inference_mode"] is True
    assert json.loads(made[0][2])["chain"] == ["../theta_0", "."]


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    player = chain(ring_of(base_of("llama")), "continue", tmp_path)[-1]
    with pytest.raises(ModelError, match="trained on another base; give the base it belongs to") as refused:
        ring_of(base_of("llama", seed=1)).seat(player)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("step", [0, -1])
def test_an_altered_adapter_breaks_law_11(hold: str, step: int, tmp_path: Path) -> None:
    ring = ring_of(base_of("llama"))
    player = chain(ring, hold, tmp_path)[-1]
    file = player.adapters[step] / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].clone()
    tensors[name].view(torch.int32)[0, 0] += 1  # the last bit of one weight
    save_file(tensors, file)
    with pytest.raises(LawBroken, match=r"law 11: the weights in memory .* are not those of the player asked for"):
        ring.seat(player)
    ring.seat(Player.untrained(ring.base))  # the ring is not spoilt


@pytest.mark.parametrize("lost", ["some", "all"])
def test_lost_weights_are_named(lost: str, tmp_path: Path) -> None:
    ring = ring_of(base_of("llama"))
    player = chain(ring, "continue", tmp_path)[-1]
    file = player.adapters[0] / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({} if lost == "all" else {k: v for k, v in tensors.items() if "layers.0" in k}, file)
    with pytest.raises(ModelError, match=r"is damaged: it has no base_model\.model\."):
        ring.seat(player)


# ---------------------------------------------------------------- methods


def dropouts(ring: Ring) -> dict[str, float]:
    return {name: m.p for name, m in ring.model.named_modules() if isinstance(m, torch.nn.Dropout)}


def test_dropout_is_the_adapters_and_only_when_asked_for(tmp_path: Path) -> None:
    """Fine-tuning may drop; self-play may not, neither in what is trained nor in what stands below it."""
    ring = ring_of(base_of("gpt2"))
    untrained = Player.untrained(ring.base, "stack")
    own = len(dropouts(ring))
    assert own > 0
    ring.challenge(untrained, seed=0, dropout=0.1)
    found = dropouts(ring)
    assert len(found) > own
    assert {p for name, p in found.items() if "lora_dropout" in name} == {0.1}
    assert {p for name, p in found.items() if "lora_dropout" not in name} == {0.0}
    disturb(ring)
    (tmp_path / "sft").mkdir()
    trained = ring.save(tmp_path / "sft", untrained, tmp_path, "sft")
    opponent = scores(ring.seat(trained), ring.base)
    for hold in HOLDS:
        player = Player(trained.adapters, hold, trained.fingerprint)
        model = ring.challenge(player, seed=0)
        assert set(dropouts(ring).values()) <= {0.0}
        expected = opponent if hold != "merge" else scores(ring.model.eval(), ring.base)
        assert scores(model.train(), ring.base) == expected


def test_target_modules() -> None:
    base = base_of("llama")
    ring = Ring(base, LoRA(r=2, target_modules=["q_proj", "v_proj"]), "base")
    ring.challenge(Player.untrained(base), seed=0)
    assert len(ring.trainable()) == 2 * 2 * 2
    with pytest.raises(ConfigError, match=r"method\.target_modules \['c_attn'\] does not fit this base"):
        Ring(base, LoRA(target_modules=["c_attn"]), "base").challenge(Player.untrained(base), seed=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_linear_leaves_the_head_alone(name: str) -> None:
    ring = ring_of(base_of(name))
    ring.challenge(Player.untrained(ring.base), seed=0)
    assert ring.trainable()
    assert not [key for key in ring.trainable() if "lm_head" in key or "embed_out" in key or "wte" in key]


@pytest.mark.parametrize("module", ["lm_head", "wte"])
def test_a_shared_embedding_cannot_be_merged(module: str, tmp_path: Path) -> None:
    """Attached, an adapter changes one end of the model; merged into the one matrix, it would change both."""
    base = base_of("gpt2")
    assert base.model.get_input_embeddings().weight is base.model.get_output_embeddings().weight
    before = state_of(base)
    ring = Ring(base, LoRA(r=2, alpha=4.0, target_modules=["c_attn", module]), "base")
    with pytest.raises(ConfigError, match=r"cannot be merged apart; leave them out, or set selfplay\.hold"):
        ring.challenge(Player.untrained(base, "merge"), seed=0)
    for hold in ("continue", "stack"):
        players = chain(ring, hold, tmp_path / hold)
        expected = scores(ring.seat(players[1]), base)
        assert scores(ring.challenge(players[1], seed=0), base) == expected
        assert scores(ring.seat(players[1], merged=True), base) == expected, "it stays beside the base"
    ring.seat(Player.untrained(base))
    assert same_bytes(before, state_of(base))


def test_an_adapted_embedding_trains() -> None:
    base = base_of("llama")
    ring = Ring(base, LoRA(r=2, target_modules=["q_proj", "embed_tokens"]), "base")
    ring.challenge(Player.untrained(base, "merge"), seed=0)
    assert len([name for name in ring.trainable() if "embed_tokens" in name]) == 2
