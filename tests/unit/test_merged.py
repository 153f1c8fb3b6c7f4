"""Runs on quantised bases from end to end, what they report, and players merged into the base's own weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.helpers import CHATML, byte_tokenizer, save_base
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from sparring.configfile import build_config
from sparring.errors import InputError, LawBroken, ModelError, RunError
from sparring.export.compared import TOLERANCE
from sparring.export.merged import merge_run
from sparring.job import run_job
from sparring.models.players import Player, Ring
from sparring.plan import plan
from sparring.report.findings import warnings_of
from sparring.report.page import write_report
from sparring.report.quantised import quantised_line, quantised_rows
from sparring.report.records import read_run

pytestmark = pytest.mark.usefixtures("undrawn")
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="quantised bases need bitsandbytes, which is not here"
)
Make = Callable[..., Path]


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(name, quantise, **model): a small run, made once for each name."""
    place = tmp_path_factory.mktemp("place")
    save_base(place / "base", "llama", byte_tokenizer(template=CHATML, special=("<|endoftext|>",)))
    rows = [{"prompt": f"{a} and {b}:", "completion": f" {a + b}"} for a in range(4) for b in range(8)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str, quantise: str = "none", listeners: tuple[Any, ...] = (), **changes: Any) -> Path:
        if (place / "runs" / name / "best").exists():
            return place / "runs" / name
        tree = {
            "name": name, "runs": str(place / "runs"), "threads": 1,
            "model": {"base": str(place / "base"), "dtype": "fp32", "device": "cpu", "quantise": quantise},
            "data": {"train": str(place / "rows.jsonl"), "eval_size": 12},
            "method": {"r": 4}, "sft": {"batch_size": 5, "lr": 5e-3},
            "selfplay": {"iterations": 1, "batch_size": 5, "lr": 1e-3, "stop_nll_rise": 9.0, "stop_real_drop": 9.0},
            "optimiser": {"save_every": 2}, "evaluation": {"show": 1},
        }  # fmt: skip
        return run_job(build_config(tree, [f"{key}={value}" for key, value in changes.items()]), list(listeners))

    return run


def contents(folder: Path) -> dict[str, bytes]:
    kept = (".safetensors", ".arrow")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in kept or path.name in ("best.json", "player.json", "answers.jsonl")
    }


# ---------------------------------------------------------------- runs on quantised bases


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_run_says_what_quantising_cost(make, kind):
    run = make(kind, kind)
    lock = yaml.safe_load((run / "run.lock.yaml").read_text())
    name = {"nf4": "NF4 (double)", "int8": "int8"}[kind]
    assert lock["base"]["quantised"] == lock["same"]["base quantised to"] == name
    assert "bitsandbytes" in lock["versions"]
    read = read_run(run)
    cost = read.quantisation
    assert cost["bytes"] < cost["plain_bytes"] == sum(t.nbytes for t in load_file(_base(lock)).values())
    assert cost["nll"] == pytest.approx(read.scores["base"]["nll"], abs=1e-6)
    assert cost["plain_nll"] != cost["nll"]
    low, high = cost["difference"]["low"], cost["difference"]["high"]
    assert low <= cost["nll"] - cost["plain_nll"] <= high
    plain = make("none")
    assert cost["plain_nll"] == pytest.approx(read_run(plain).scores["base"]["nll"], abs=1e-6)
    line = quantised_line(read)
    assert line.startswith(f"{name} base: weights 0.2 → 0.1 MiB; held-out NLL of the base ")
    assert f"{cost['plain_nll']:.4f} → {cost['nll']:.4f}" in line
    page = write_report(run).read_text()
    for text in (page, (run / "report.md").read_text()):
        assert "What quantising the base cost" in text
        assert f"{cost['plain_nll']:.4f}" in text
    assert f", {name}</" in page
    assert len(quantised_rows(read)) == 3


def _base(lock: dict[str, Any]) -> Path:
    return Path(lock["base"]["name"]) / "model.safetensors"


def test_an_unquantised_run_says_nothing_of_it(make):
    run = make("none")
    read = read_run(run)
    assert quantised_line(read) == ""
    assert quantised_rows(read) == []
    assert not (run / "quantisation").exists()
    assert "quantis" not in (run / "run.lock.yaml").read_text().replace("quantise: none", "")
    assert "What quantising" not in (run / "report.html").read_text()
    same = yaml.safe_load((run / "run.lock.yaml").read_text())["same"]
    assert not {"quantise", "double_quant"} & set(same["model"])  # or runs made before they were there could not go on


@needs_bitsandbytes
def test_where_the_plain_base_does_not_fit_the_cost_is_not_measured(make, monkeypatch):
    from sparring.evaluation import quantisation

    monkeypatch.setattr(quantisation, "free_memory", lambda device: 1000)
    read = read_run(make("short", "int8", **{"selfplay.iterations": 0}))
    assert "plain_nll" not in read.quantisation
    assert "was not measured: the base in float32 needs 0 MiB, and 0 MiB are free" in quantised_line(read)
    assert any("was not measured" in warning for warning in warnings_of(read))


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_killed_run_on_a_quantised_base_ends_in_the_same_bytes(make, kind):
    whole, killed = make(kind, kind), []

    def kill(event: dict[str, Any]) -> None:
        place = (event.get("phase"), event.get("step"))
        if event["event"] == "step" and place in (("sft", 3), ("0/player", 3)) and place not in killed:
            killed.append(place)
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            make(f"{kind}-killed", kind, listeners=(kill,))
    assert contents(make(f"{kind}-killed", kind, listeners=(kill,))) == contents(whole)


@needs_bitsandbytes
def test_another_quantisation_is_another_run(make):
    run = make("nf4", "nf4")
    (run / "best").rename(run / "aside")  # so that it is asked for again
    try:
        with pytest.raises(RunError, match=r"base quantised to: 'NF4 \(double\)', now it is 'int8'"):
            make("nf4", "int8")
        with pytest.raises(RunError, match="was made with base fingerprint"):
            make("nf4", "none")
    finally:
        (run / "aside").rename(run / "best")


@needs_bitsandbytes
def test_a_run_on_a_base_that_comes_quantised(make, tmp_path):
    plain = Path(yaml.safe_load((make("none") / "run.lock.yaml").read_text())["base"]["name"])
    packed = tmp_path / "packed"
    asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=asked).save_pretrained(packed)
    AutoTokenizer.from_pretrained(plain).save_pretrained(packed)
    run = make("packed", **{"model.base": str(packed)})
    read = read_run(run)
    assert "NF4 base: weights 0.2 → 0.1 MiB; what that cost" in quantised_line(read)
    assert any("comes quantised, and what it was before" in warning for warning in warnings_of(read))
    text = plan(build_config(yaml.safe_load((run / "run.lock.yaml").read_text())["config"])).text
    assert "quantised NF4 as it comes: weights" in text
    assert "next to nothing here, and costs speed and accuracy; give the base in 16 bits" in text
    with pytest.raises(ModelError, match=r"comes quantised .nf4.*; merge into the base in 16 bits"):
        merge_run(run, tmp_path / "merged")


# ---------------------------------------------------------------- merging


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
def test_a_player_is_merged_into_the_bases_own_weights(make, kind, tmp_path):
    run, out = make(kind, kind), tmp_path / "merged"
    found = merge_run(run, out, "sft")
    assert found.dtype == "fp32"
    assert abs(found.off) < 1e-5
    assert found.largest(2) < 1e-3
    assert (found.largest(1) > 1e-3) == (kind != "none")
    lock = yaml.safe_load((run / "run.lock.yaml").read_text())
    own, base = load_file(out / "model.safetensors"), load_file(_base(lock))
    assert own.keys() == base.keys()
    changed = {name for name in own if not torch.equal(own[name], base[name])}
    assert len(changed) == 14  # every linear layer but the head, each
    assert all(own[name].dtype == torch.float32 for name in own)
    # by nothing of ours
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    answers = [json.loads(line) for line in (run / "sft-scores" / "answers.jsonl").read_text().splitlines()]
    row = answers[0]
    ids = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    real = tokenizer(row["real"], add_special_tokens=False)["input_ids"]
    logp = model(input_ids=torch.tensor([ids + real])).logits.log_softmax(-1)[0]
    total = sum(logp[len(ids) - 1 + i, token].item() for i, token in enumerate(real))
    assert total == pytest.approx(sum(found.values[2][: len(real)]), abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_merged_in_half_precision_the_error_is_told(make, dtype, tmp_path):
    found = merge_run(make("nf4", "nf4"), tmp_path / "half", "0", dtype)
    assert 0 < abs(found.off) <= TOLERANCE[dtype]
    assert f"Rounding merged weights to {dtype} moves the log-prob of a token by {found.apart:.2g} nats" in found.text()
    assert 0 < found.apart < found.effect
    assert not found.wrong()
    assert "so the player is lost in it; try --dtype fp32" in replace(found, before=found.values[1]).wrong()[0]
    facts = found.facts()
    assert facts["nll"]["merged"] - facts["nll"]["attached"] == pytest.approx(found.off)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"].endswith("float16")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16 if dtype == "bf16" else torch.float16}


def test_the_folder_is_the_bases_in_all_but_the_weights(make, tmp_path):
    run = make("none")
    merge_run(run, tmp_path / "merged")
    base = _base(yaml.safe_load((run / "run.lock.yaml").read_text())).parent
    mine, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "merged", base))
    assert mine == theirs | {"dtype": "float32"}
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "adapter_config.json" not in names


def test_what_is_wrong_is_set_aside(make, monkeypatch, tmp_path):
    """A merge that loses the adapter is caught by the numbers."""
    keep = Ring.seat

    def plain(ring: Any, player: Any, merged: bool = False) -> Any:
        return keep(ring, Player.untrained(ring.base)) if merged else keep(ring, player)

    monkeypatch.setattr(Ring, "seat", plain)
    with pytest.raises(LawBroken, match=r"law 12: what was written is not the player: its held-out NLL per token is"):
        merge_run(make("none"), tmp_path / "wrong", "sft")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.unverified"]


def test_nothing_is_overwritten(make, tmp_path):
    run, out = make("none"), tmp_path / "merged"
    merge_run(run, out, "sft")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists; give another --out, or --force"):
        merge_run(run, out, "0")
    assert (out / "model.safetensors").read_bytes() == before
    merge_run(run, out, "0", force=True)
    assert (out / "model.safetensors").read_bytes() != before
    other = tmp_path / "letters"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="was not exported by sparring, so it is not replaced"):
        merge_run(run, other, "0", force=True)
    with pytest.raises(InputError, match="does not exist; make it"):
        merge_run(run, tmp_path / "no" / "where")


def test_what_cannot_be_merged_is_refused(make, tmp_path):
    with pytest.raises(InputError, match="the base has no adapter"):
        merge_run(make("none"), tmp_path / "a", "base")
    with pytest.raises(RunError, match='no player "7"'):
        merge_run(make("none"), tmp_path / "a", "7")
    with pytest.raises(RunError, match="this player is the base itself"):
        merge_run(make("untrained", **{"sft.epochs": 0, "selfplay.iterations": 0}), tmp_path / "a", "sft")
    assert list(tmp_path.iterdir()) == []


def test_into_another_base_nothing_is_merged(make, tmp_path):
    run = make("none")
    path = _base(yaml.safe_load((run / "run.lock.yaml").read_text()))
    kept = path.read_bytes()
    weights = load_file(path)
    weights["model.norm.weight"] += 1
    save_file(weights, path, {"format": "pt"})
    try:
        with pytest.raises(ModelError, match="was trained on another base"):
            merge_run(run, tmp_path / "a")
    finally:
        path.write_bytes(kept)
