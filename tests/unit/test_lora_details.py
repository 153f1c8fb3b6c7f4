"""What people expect of LoRA: targets, ranks per module, modules trained whole; and starting from an adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import base_of, disturb, make_player, random_rows
from tests.parity.test_architectures import check_run, settings

from sparring.configfile import build_config, changed
from sparring.errors import ConfigError, ModelError
from sparring.job import run_job
from sparring.methods import METHODS, switched
from sparring.methods.lora import LoRA
from sparring.models.adapters import fingerprint_tensors, settings_of
from sparring.models.base import Base
from sparring.models.players import Player, Ring
from sparring.models.scoring import answer_logprobs, score
from sparring.start import settled

pytestmark = pytest.mark.usefixtures("undrawn")


def scores(ring: Ring) -> list[float]:
    return score(ring.model, ring.base, random_rows(ring.base.vocabulary, count=4), 8192)


def adapted(base: Base, **given: Any) -> tuple[Ring, set[str]]:
    """(a ring with a challenger, the last names of the modules that it adapts)."""
    ring = Ring(base, LoRA(r=2, alpha=4.0, **given), "base")
    ring.challenge(Player.untrained(base), seed=0)
    return ring, {name.split(".lora_A")[0].split(".")[-1] for name in ring.trainable() if "lora_A" in name}


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("q_proj", {"q_proj"}),
        (["q_proj", "down_proj"], {"q_proj", "down_proj"}),
        (r".*layers\.1\..*_proj", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
    ids=["name", "list", "pattern", "all"],
)
def test_targets_by_name_list_pattern_or_all(given: Any, expected: set[str]) -> None:
    ring, found = adapted(base_of("llama"), target_modules=given)
    assert found == expected
    layers = {name.split("layers.")[1][0] for name in ring.trainable()}
    assert layers == ({"1"} if given == r".*layers\.1\..*_proj" else {"0", "1"})


def test_a_broken_pattern_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r'method.target_modules "\(q" is not a regular expression'):
        build_config({"method": {"target_modules": "(q"}})


def test_rank_and_alpha_per_module(tmp_path: Path) -> None:
    base = base_of("llama")
    given = {"rank_pattern": {"down_proj": 7}, "alpha_pattern": {"q_proj": 20.0}}
    ring, _ = adapted(base, **given)
    ranks = {
        name.split(".lora_A")[0].split(".")[-1]: len(p) for name, p in ring.trainable().items() if "lora_A" in name
    }
    assert ranks == {**dict.fromkeys(ranks, 2), "down_proj": 7}
    scaling = {
        name.split(".")[-1]: module.scaling["player"]
        for name, module in ring.model.named_modules()
        if name.endswith(("q_proj", "k_proj"))
    }
    assert scaling == {"q_proj": 10.0, "k_proj": 2.0}
    player = make_player(ring, Player.untrained(base), tmp_path, "one")
    ring.seat(player)
    expected = scores(ring)
    ring.seat(player, merged=True)
    assert scores(ring) == pytest.approx(expected, abs=1e-3)
    found = settings_of(player.adapters[0])
    assert isinstance(found, LoRA)
    assert (found.r, found.alpha, found.rank_pattern, found.alpha_pattern) == (2, 4.0, *given.values())


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neo"])
def test_modules_trained_whole(name: str, tmp_path: Path) -> None:
    """The head beside the adapter: it trains, is saved, merged and taken out again; the base's own stays."""
    base = base_of(name)
    before = fingerprint_tensors(dict(base.model.state_dict()))
    ring = Ring(base, LoRA(r=2, modules_to_save=["lm_head"]), "base")
    model = ring.challenge(Player.untrained(base), seed=0)
    start = scores(ring)
    torch.autograd.backward(answer_logprobs(model, base, random_rows(base.vocabulary, count=3)).logprob_A.sum())
    (head,) = [key for key in ring.trainable() if "modules_to_save" in key]
    assert ring.trainable()[head].grad is not None
    model.zero_grad()
    disturb(ring)
    assert scores(ring) != start
    (tmp_path / "one").mkdir()
    player = ring.save(tmp_path / "one", Player.untrained(base), tmp_path, "one")
    expected = scores(ring)
    ring.seat(player)
    assert scores(ring) == pytest.approx(expected, abs=1e-4)
    ring.seat(player, merged=True)
    assert scores(ring) == pytest.approx(expected, abs=1e-4)  # it stays beside the base
    ring.seat(Player.untrained(base))
    assert scores(ring) == start
    ring.challenge(player, seed=1)
    assert scores(ring) == pytest.approx(expected, abs=1e-4)
    ring.seat(Player.untrained(base))
    assert scores(ring) == start
    assert fingerprint_tensors(dict(base.model.state_dict())) == before


# ---------------------------------------------------------------- another method


def test_another_method_takes_over_what_both_have() -> None:
    mine = LoRA(r=8, dropout=0.1)
    assert switched(mine, "dora") == {"name": "dora", "r": 8, "dropout": 0.1}
    assert switched(mine, "houlsby") == {"name": "houlsby", "dropout": 0.1}
    assert switched(mine, "prefix") == {"name": "prefix"}
    config = build_config({"method": {"name": "lora", "r": 8}})
    assert changed(config, {"method": switched(config.method, "dora")}).method == METHODS["dora"].settings(r=8)
    with pytest.raises(ConfigError, match='did you mean "dora"'):
        switched(mine, "dorra")


@pytest.mark.parametrize(
    ("tree", "words", "said"),
    [
        ({"method": "prefix"}, ["method.r=3"], "r is a setting of lora, dora, rslora, loraplus, pissa"),
        ({"method": {"name": "pissa"}}, ["optimiser.weight_decay=0.1"], "half of which must stay as it is"),
        ({"selfplay": {"keep": 2, "hold": "stack"}}, [], "drops players that later ones stand on"),
        ({"method": {"modules_to_save": ["lm_head"]}}, ["selfplay.hold=merge"], "modules_to_save trains whole modules"),
        ({"method": 3}, [], "should be a section"),
        ({"method": {"name": "prompt", "length": 0}}, [], "method.length: found 0"),
    ],
)
def test_settings_that_do_not_fit(tree: dict[str, Any], words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_config(tree, words)
    assert said in str(refused.value)


# ---------------------------------------------------------------- start: path


def adapter_from_peft(folder: Path, base: Path, **changes: Any) -> Path:
    """A LoRA as PEFT saves it, far from zero; with what Unsloth writes beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=0.1, target_modules=r".*(q|v)_proj", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    about = json.loads((folder / "adapter_config.json").read_text())
    about |= {"base_model_name_or_path": "unsloth/llama-bnb-4bit", "auto_mapping": {"unsloth_fixed": True}, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def test_start_from_an_adapter_made_elsewhere(tmp_path: Path) -> None:
    """θ_0 is the adapter, its method is read from it, there is no SFT, and self-play goes on from it."""
    tree = settings("llama", tmp_path)
    given = adapter_from_peft(tmp_path / "given", tmp_path / "base")
    del tree["method"]
    tree |= {"start": str(given)}
    run = run_job(build_config(tree))
    check_run(run, 2, 1e-3)
    assert json.loads((run / "sft" / "phase.json").read_text())["facts"]["steps"] == 0
    ours = run / "sft" / "adapter_model.safetensors"
    from safetensors.torch import load_file

    theirs = load_file(given / "adapter_model.safetensors")
    mine = load_file(ours)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    assert {
        len(value) for key, value in load_file(run / "1/player/adapter_model.safetensors").items() if "A" in key
    } == {3}
    assert run_job(build_config(tree)) == run  # and is found again


def test_start_from_a_player_of_another_run(tmp_path: Path) -> None:
    tree = settings("llama", tmp_path)
    first = run_job(build_config(tree))
    second = run_job(build_config({**tree, "name": "second", "start": str(first / "1/player")}))
    check_run(second, 2, 1e-3)
    mine, theirs = Player.load(second / "sft"), Player.load(first / "1/player")
    assert mine.fingerprint == theirs.fingerprint
    shutil.rmtree(first)
    assert Player.load(second / "sft").fingerprint == theirs.fingerprint
    tree = {**tree, "name": "stacked", "selfplay": {**tree["selfplay"], "hold": "stack"}}
    stacked = run_job(build_config(tree))
    third = run_job(build_config({**tree, "name": "third", "start": str(stacked / "0/player")}))
    assert Player.load(third / "sft").fingerprint == Player.load(stacked / "0/player").fingerprint
    assert len(Player.load(third / "1/player").adapters) == 4
    fourth = {**tree, "name": "fourth", "start": str(stacked / "0/player")}
    fourth["selfplay"] = {**tree["selfplay"], "hold": "continue"}
    with pytest.raises(ModelError, match="stands on 2 adapters"):
        run_job(build_config(fourth))


def test_a_start_that_cannot_be_is_refused_before_a_model_is_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    tree = settings("llama", tmp_path)
    given = adapter_from_peft(tmp_path / "given", tmp_path / "base")
    monkeypatch.setattr("sparring.job.find_base", lambda config: pytest.fail("it went on"))

    def refused(start: Path, kind: type[Exception], said: str, **more: Any) -> None:
        with pytest.raises(kind, match=said):
            run_job(build_config({**tree, "start": str(start), **more}))

    refused(given, ConfigError, "is a player of method lora, rank 3, .* the config says method.alpha 8.0, .*method.r 4")
    refused(tmp_path / "nowhere", ModelError, "is not a folder")
    refused(tmp_path / "base", ModelError, "is a model, not an adapter")
    odd = adapter_from_peft(tmp_path / "odd", tmp_path / "base", peft_type="VERA")
    refused(odd, ModelError, "adapter of type VERA, which is not among the methods")
    pickled = shutil.copytree(given, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    refused(pickled, ModelError, "pickled weights")
    assert settled(build_config({"start": str(given)})).method.summary == "lora, rank 3"
    held = build_config({"start": str(given), "selfplay": {"hold": "stack"}, "method": {"r": 5}})
    assert settled(held).method == LoRA(r=5)


def test_an_adapter_of_another_base_is_one_sentence(tmp_path: Path) -> None:
    tree = settings("llama", tmp_path)
    del tree["method"]
    given = adapter_from_peft(tmp_path / "given", tmp_path / "base")
    other = settings("gpt_neo", tmp_path / "other") if (tmp_path / "other").mkdir() is None else {}
    del other["method"]
    with pytest.raises(ModelError, match=r"does not fit this base|no place for"):
        run_job(build_config({**other, "start": str(given)}))
