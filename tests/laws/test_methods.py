"""What every method's players must satisfy: one suite, for each row of METHODS on three architectures.

A row is in the suite as soon as it is in the table, so a new method is held to the same laws.
"""

from __future__ import annotations

import json
import math
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparring.config import GenerationConfig, ModelConfig
from sparring.config_selfplay import SelfPlayConfig
from sparring.configfile import build_config
from sparring.data.pairs import Pair, Rows, write_rows
from sparring.errors import ConfigError, ModelError
from sparring.generation.local import LocalGenerator
from sparring.generation.sampling import stream_keys
from sparring.job import run_job
from sparring.methods import METHODS
from sparring.models.adapters import fingerprint_tensors
from sparring.models.base import Base, load_base, load_renderer
from sparring.models.forward import Layout
from sparring.models.players import Player, Ring
from sparring.models.scoring import answer_logprobs, score
from sparring.tasks import PairTask
from tests.helpers import base_of, disturb, make_player, random_rows, save_base
from tests.parity.test_architectures import TOKENIZERS, check_run, settings

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL: dict[str, dict[str, Any]] = {
    **{name: {"r": 4, "alpha": 8} for name in ("lora", "dora", "rslora", "loraplus", "pissa")},
    **{name: {"length": 3} for name in ("prompt", "prefix")},
    **{name: {"reduction": 4} for name in ("houlsby", "pfeiffer")},
}
RATES = {"full": 1e-3, "pissa": 1e-3, "ia3": 0.1, "prompt": 0.5, "prefix": 0.1}
BASES = ("llama", "qwen2", "gpt_neo")
EVERY = [(method, base) for method in METHODS for base in BASES]
every = pytest.mark.parametrize(("method", "name"), EVERY, ids=[f"{method}-{base}" for method, base in EVERY])
of_each = pytest.mark.parametrize("method", METHODS)


def section(method: str) -> dict[str, Any]:
    return {"name": method, **SMALL.get(method, {})}


def ring_with(method: str, base: Base) -> Ring:
    return Ring(base, METHODS[method].settings.model_validate(section(method)), "base")


def rows_of(base: Base) -> list[Any]:
    return random_rows(base.vocabulary, count=5)


def scores(ring: Ring) -> list[float]:
    return score(ring.model, ring.base, rows_of(ring.base), 8192)


def fresh(ring: Ring, folder: Path) -> Player:
    """θ_0 without training, as a run makes it with sft.epochs 0."""
    (folder / "start").mkdir(parents=True)
    ring.save_start(folder / "start", "continue", 0, folder, "start")
    return Player.load(folder / "start")


def trained(ring: Ring, folder: Path) -> Player:
    """A player that is far from where it began."""
    return make_player(ring, fresh(ring, folder), folder, "trained")


def nameless(tensors: dict[str, torch.Tensor]) -> list[str]:
    """A print of each tensor, whatever the adapter is called in memory."""
    return [fingerprint_tensors({"": tensor}) for tensor in tensors.values()]


def bytes_of(base: Base) -> str:
    return fingerprint_tensors(dict(base.model.state_dict()))


# ---------------------------------------------------------------- a player and its opponent


@every
def test_a_challenger_is_exactly_its_opponent(method: str, name: str, tmp_path: Path) -> None:
    """Law 1: from a fresh opponent and from a trained one every margin is 0, bit for bit, and the loss is ℓ(0)."""
    ring = ring_with(method, base_of(name))
    for number, opponent in enumerate((fresh(ring, tmp_path), trained(ring, tmp_path / "far"))):
        ring.seat(opponent)
        expected = scores(ring)
        model = ring.challenge(opponent, seed=5)
        assert scores(ring) == expected
        assert score(model.train(), ring.base, rows_of(ring.base), 8192) == expected
        rows = rows_of(ring.base)
        pair = Pair(1, rows[0][0], rows[0][1], [rows[1][1]], 0.0, [0.0], 0)
        real, other = score(model, ring.base, [(pair.prompt_ids, ids) for ids in (rows[0][1], rows[1][1])], 8192)
        scored = Pair(1, pair.prompt_ids, pair.real_ids, pair.synthetic_ids, real, [other], 0)
        write_rows(tmp_path / "pairs.arrow", [scored], Pair)
        task = PairTask(ring.base, Rows([tmp_path / "pairs.arrow"], Pair), SelfPlayConfig(anchor=0.0), 0, 8192)
        loss, _ = task.loss(model, [0])
        assert loss.item() == pytest.approx(math.log(2), abs=1e-6), number


@every
def test_a_fresh_player_is_the_base_where_the_table_says_so(method: str, name: str, tmp_path: Path) -> None:
    ring = ring_with(method, base_of(name))
    ring.seat(Player.untrained(ring.base))
    expected = scores(ring)
    ring.seat(fresh(ring, tmp_path))
    assert (scores(ring) == expected) == METHODS[method].starts_as_base
    assert bool(Player.load(tmp_path / "start").adapters) != METHODS[method].starts_as_base


# ---------------------------------------------------------------- files


@every
def test_saved_and_loaded_it_is_the_same_player(method: str, name: str, tmp_path: Path) -> None:
    ring = ring_with(method, base_of(name))
    opponent = fresh(ring, tmp_path)
    ring.challenge(opponent, seed=1)
    disturb(ring)
    ring.model.eval()
    expected, weights = scores(ring), nameless(ring.trainable())
    for copy in ("one", "two"):
        (tmp_path / copy).mkdir()
        ring.save(tmp_path / copy, opponent, tmp_path, copy)
    saved = {file.name: file.read_bytes() for file in sorted((tmp_path / "one").iterdir())}
    assert saved == {file.name: file.read_bytes() for file in sorted((tmp_path / "two").iterdir())}
    player = Player.load(tmp_path / "one")
    ring.seat(Player.untrained(ring.base))
    assert scores(ring) != expected
    ring.seat(player)
    assert scores(ring) == expected
    ring.challenge(player, seed=3)
    assert sorted(nameless(ring.trainable())) == sorted(weights)
    elsewhere = ring_with(method, base_of(name))
    elsewhere.seat(player)
    assert scores(elsewhere) == expected


@every
def test_the_folder_is_an_ordinary_one(method: str, name: str, tmp_path: Path) -> None:
    """PEFT, or for whole models transformers, loads it by itself and gives the same log-probs."""
    from peft import PeftModel

    base = base_of(name)
    ring = ring_with(method, base)
    player = trained(ring, tmp_path)
    ring.seat(player)
    row = rows_of(base)[0]
    expected = scores(ring)[0]
    if METHODS[method].whole:
        model = AutoModelForCausalLM.from_pretrained(player.adapters[0], use_safetensors=True)
        assert not any("adapter" in file.name for file in player.adapters[0].iterdir())
    else:
        assert not (player.adapters[0] / "config.json").exists()
        assert json.loads((player.adapters[0] / "adapter_config.json").read_text())["inference_mode"]
        assert base.reload is not None
        model = PeftModel.from_pretrained(base.reload(), str(player.adapters[0]))
    prompt, answer = row
    with torch.no_grad():  # with prompt tuning there are logits at the virtual places too
        logits_LV = model.eval()(input_ids=torch.tensor([prompt + answer])).logits[0, -len(prompt + answer) :]
    found = logits_LV.log_softmax(-1)[torch.arange(len(prompt) - 1, len(prompt + answer) - 1), torch.tensor(answer)]
    assert found.sum().item() == pytest.approx(expected, abs=2e-4)


@every
def test_a_damaged_player_is_one_sentence(method: str, name: str, tmp_path: Path) -> None:
    ring = ring_with(method, base_of(name))
    player = trained(ring, tmp_path)
    (file,) = player.adapters[0].glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ModelError, match="damaged"):
        ring.seat(player)


# ---------------------------------------------------------------- only the adapter


@every
def test_only_the_adapter_learns_and_the_base_comes_back(method: str, name: str, tmp_path: Path) -> None:
    base = base_of(name)
    before = bytes_of(base)
    ring = ring_with(method, base)
    opponent = trained(ring, tmp_path)
    model = ring.challenge(opponent, seed=2).train()
    frozen = {key: p.detach().clone() for key, p in model.named_parameters() if not p.requires_grad}
    start = {key: p.detach().clone() for key, p in ring.trainable().items()}
    optimiser = torch.optim.AdamW(list(ring.trainable().values()), lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        loss = -answer_logprobs(model, base, rows_of(base)).logprob_A.sum()
        torch.autograd.backward(loss)
        assert all(p.grad is None for key, p in model.named_parameters() if key in frozen)
        optimiser.step()
        optimiser.zero_grad()
    after = dict(model.named_parameters())
    assert all(torch.equal(value, after[key]) for key, value in frozen.items())
    assert (not frozen) == METHODS[method].whole
    unmoved = [key for key, value in start.items() if torch.equal(value, after[key])]
    seen = {token for prompt, answer in rows_of(base) for token in (*prompt, *answer)}
    assert not unmoved, (unmoved, len(seen))
    ring.seat(Player.untrained(base))
    assert bytes_of(base) == before


@every
def test_gradient_checkpointing_changes_nothing(method: str, name: str, tmp_path: Path) -> None:
    base = base_of(name)
    ring = ring_with(method, base)
    model = ring.challenge(trained(ring, tmp_path), seed=2).train()
    found = []
    for again in (False, True):
        if again:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.autograd.backward(answer_logprobs(model, base, rows_of(base)).logprob_A.sum())
        found.append({key: p.grad.clone() for key, p in ring.trainable().items() if p.grad is not None})
        model.zero_grad()
    base.model.gradient_checkpointing_disable()
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- merged


@every
def test_merged_is_attached_where_it_can_merge(method: str, name: str, tmp_path: Path) -> None:
    """Law 12; what cannot be merged is played as it is, and refused under selfplay.hold merge."""
    base = base_of(name)
    before = bytes_of(base)
    ring = ring_with(method, base)
    player = trained(ring, tmp_path)
    ring.seat(player)
    attached = scores(ring)
    model = ring.seat(player, merged=True)
    assert scores(ring) == pytest.approx(attached, abs=2e-3)
    assert (type(model) is type(base.model)) == (METHODS[method].merges or METHODS[method].whole)
    ring.seat(Player.untrained(base))
    assert bytes_of(base) == before


@of_each
@pytest.mark.parametrize("hold", ["merge", "stack"])
def test_a_hold_that_cannot_be_is_refused(method: str, hold: str) -> None:
    tree = {"method": section(method), "selfplay": {"hold": hold}}
    if METHODS[method].holds(hold):
        assert build_config(tree).selfplay.hold == hold
    else:
        with pytest.raises(ConfigError, match=f'selfplay.hold "{hold}" is not for method {method}'):
            build_config(tree)


@pytest.mark.parametrize("hold", ["merge", "stack"])
@every
def test_a_new_adapter_on_an_old_one_changes_nothing(method: str, name: str, hold: str, tmp_path: Path) -> None:
    if not METHODS[method].holds(hold):
        pytest.skip(f"players of {method} are not held by {hold}")
    ring = ring_with(method, base_of(name))
    player = Player.untrained(ring.base, hold)
    for number in range(2):
        player = make_player(ring, player, tmp_path, f"theta_{number}", seed=number + 1)
    ring.seat(player)
    expected = scores(ring)
    ring.challenge(player, seed=7)
    assert scores(ring) == expected
    assert len(player.adapters) == 2


# ---------------------------------------------------------------- packed rows, playing


@every
def test_packed_rows_are_separate_rows(method: str, name: str, tmp_path: Path) -> None:
    base = base_of(name)
    assert base.layout.packed == (name != "gpt_neo")  # its attention is its own: the fallback is taken, and said
    assert bool(base.layout.why) != base.layout.packed
    ring = ring_with(method, base)
    ring.seat(trained(ring, tmp_path))
    prompt, answer = rows_of(base)[0]
    rows = [(prompt, answer), (prompt, answer[:2]), (prompt[:3], answer), (prompt[:3], [7, 8, 9])]
    together = score(ring.model, base, rows, 8192)
    alone = [score(ring.model, base, [row], 8192)[0] for row in rows]
    own = Base(**{**_fields(base), "layout": Layout()})
    separate = [score(ring.model, own, [row], 8192)[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-3)
    assert together == pytest.approx(separate, abs=1e-3)


def _fields(base: Base) -> dict[str, Any]:
    return {name: getattr(base, name) for name in base.__dataclass_fields__}


@every
def test_playing_and_learning_see_the_same_log_probs(method: str, name: str, tmp_path: Path) -> None:
    base = base_of(name, tokenizer=TOKENIZERS[name]())
    ring = ring_with(method, base)
    model = ring.seat(trained(ring, tmp_path), merged=True)
    prompts = [prompt[:12] for prompt, _ in rows_of(base)] * 2
    keys = stream_keys(0, 0, [0] * len(prompts), list(range(len(prompts))))
    answers = LocalGenerator(model, base, GenerationConfig())(prompts, keys, 8)
    rows = [(prompt, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]
    assert score(model, base, rows, 8192) == pytest.approx([answer.logprob for answer in answers], abs=2e-3)
    alone = LocalGenerator(model, base, GenerationConfig())(prompts[:1], keys[:1], 8)
    assert alone[0].ids == answers[0].ids


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize(("method", "name"), zip(METHODS, cycle(BASES), strict=False))
def test_a_whole_run_keeps_every_law(method: str, name: str, tmp_path: Path) -> None:
    """SFT and two iterations through the real job, whose run-time laws stop it if one is broken.

    Each method on one of the bases, each base with several methods: tests/parity has whole runs of every architecture.
    """
    tree = settings(name, tmp_path)
    tree["method"] = section(method)
    for part in ("sft", "selfplay"):
        tree[part] |= {"lr": RATES.get(method, 1e-2)}
    run = run_job(build_config(tree))
    check_run(run, 2, 2e-4)


@of_each
def test_without_sft_the_start_is_a_player(method: str, tmp_path: Path) -> None:
    tree = settings("llama", tmp_path)
    tree["method"] = section(method)
    tree["sft"] |= {"epochs": 0}
    tree["selfplay"] |= {"iterations": 1, "lr": RATES.get(method, 1e-2)}
    run = run_job(build_config(tree))
    check_run(run, 1, 2e-4)
    assert bool(Player.load(run / "sft").adapters) != METHODS[method].starts_as_base


def test_the_table_is_of_rows_that_say_what_they_are() -> None:
    for name, row in METHODS.items():
        assert row.name == name
        assert row.what
        assert "arXiv" in row.source
        assert len(row.lr) == 3
        assert list(row.lr) == sorted(row.lr)
        assert row.settings.model_validate({"name": name}).summary.startswith(name)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_only_some_players_are_kept(method: str, tmp_path: Path) -> None:
    """selfplay.keep: θ_0, the best and the last stay; a second call changes nothing, and the result is the same."""
    tree = settings("llama", tmp_path)
    tree["method"] = section(method)
    tree["selfplay"] |= {"iterations": 3, "lr": 1e-3, "keep": 1}
    run = run_job(build_config(tree))
    best = json.loads((run / "best" / "best.json").read_text())["player"]
    names = {f"{t}/player" for t in range(3)} | {"sft"}
    kept = {name for name in names if list((run / name).glob("*.safetensors"))}
    assert kept == {"sft", "2/player", "sft" if best == "sft" else f"{best}/player"}
    with pytest.raises(ModelError, match=r"selfplay\.keep did not keep them"):
        Player.load(run / sorted(names - kept)[0])
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    assert run_job(build_config(tree)) == run
    assert {path: path.read_bytes() for path in run.rglob("*.safetensors")} == before
    every = run_job(build_config(tree | {"name": "every", "selfplay": {**tree["selfplay"], "keep": None}}))
    for path, content in before.items():
        assert (every / path.relative_to(run)).read_bytes() == content


# ---------------------------------------------------------------- on a quantised base


QUANTISED = [(method, kind) for method, row in METHODS.items() for kind in ("nf4", "int8") if row.quantised]


@pytest.mark.parametrize(("method", "kind"), QUANTISED, ids=[f"{method}-{kind}" for method, kind in QUANTISED])
def test_on_a_quantised_base(method: str, kind: str, tmp_path: Path) -> None:
    """The same laws in 4 and 8 bits: equal to its opponent, only it learns, all of it learns, the base's bytes stay."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = ModelConfig(base=str(save_base(tmp_path / "base", "llama", TOKENIZERS["llama"]())), quantise=kind)
    config = config.model_copy(update={"device": "cpu", "dtype": "fp32"})
    base = load_base(Path(config.base), config, load_renderer(Path(config.base), config))
    before = bytes_of(base)
    ring = ring_with(method, base)
    player = trained(ring, tmp_path)
    ring.seat(player, merged=True)
    assert ring.model is not base.model, "what is merged would have to be quantised again"
    expected = scores(ring)
    model = ring.challenge(player, seed=1).train()
    assert scores(ring) == expected
    optimiser = torch.optim.AdamW(list(ring.trainable().values()), lr=1e-2, weight_decay=0.0)
    start = {key: p.detach().clone() for key, p in ring.trainable().items()}
    for _ in range(2):
        torch.autograd.backward(-answer_logprobs(model, base, rows_of(base)).logprob_A.sum())
        optimiser.step()
        optimiser.zero_grad()
    assert not [key for key, p in ring.trainable().items() if torch.equal(p, start[key])]
    ring.seat(Player.untrained(base))
    assert bytes_of(base) == before


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.quantised])
def test_what_cannot_stand_on_a_quantised_base_is_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=f"model.quantise nf4 is not for method {method}"):
        build_config({"method": section(method), "model": {"quantise": "nf4"}})
