"""Exports from end to end: every form held against the run, refused where it cannot be, set aside where it is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.gotemplate import render
from tests.helpers import CHATML, byte_tokenizer, save_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparring.browse import open_player
from sparring.configfile import build_config
from sparring.data.messages import Message
from sparring.data.pairs import Prompt, Rows
from sparring.errors import InputError, LawBroken, ModelError, RunError
from sparring.evaluation.nll import real_logprobs
from sparring.export import compared, exporting
from sparring.export.adapter import joined, scale_of
from sparring.export.bare import other_tokens
from sparring.export.exporting import Push, export_run
from sparring.export.merged import merge_run
from sparring.export.targets import Targets, read_targets, refuse
from sparring.job import run_job
from sparring.methods import METHODS
from sparring.models.adapters import read_adapter

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
pytestmark = pytest.mark.usefixtures("undrawn")
needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="the library gguf is not here")
needs_llama = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not here")
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(name, **changes): a small run on chats, made once for each name."""
    place = tmp_path_factory.mktemp("place")
    save_base(place / "base", "llama", byte_tokenizer(SPECIAL, template=CHATML))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{a} and {b}?"},
                {"role": "assistant", "content": f"It is {a + b}."},
            ]
        }
        for a in range(4)
        for b in range(8)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str = "plain", **changes: Any) -> Path:
        if (place / "runs" / name / "best").exists():
            return place / "runs" / name
        tree = {
            "name": name, "runs": str(place / "runs"), "threads": 1,
            "model": {"base": str(place / "base"), "dtype": "fp32", "device": "cpu"},
            "data": {"train": str(place / "rows.jsonl"), "eval_size": 8, "system": "Be brief."},
            "method": {"r": 4}, "sft": {"batch_size": 8, "lr": 5e-3},
            "selfplay": {"iterations": 2, "batch_size": 8, "lr": 1e-3, "stop_nll_rise": 9.0, "stop_real_drop": 9.0},
            "evaluation": {"show": 1},
        }  # fmt: skip
        return run_job(build_config(tree, [f"{key}={value}" for key, value in changes.items()]))

    return run


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def own(run: Path, player: str) -> list[float]:
    """log p of the held-out answers under a run's player."""
    opened = open_player(run, player)
    prompts = Rows([run / "data" / "eval.arrow"], Prompt)[:]
    return real_logprobs(opened.ring.seat(opened.player), opened.ring.base, prompts, 8192)


def bare(run: Path, adapter: Path) -> list[float]:
    """The same by PEFT, in a few lines that use nothing of ours."""
    base = Path(yaml.safe_load((run / "run.lock.yaml").read_text())["config"]["model"]["base"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    found = []
    for row in Rows([run / "data" / "eval.arrow"], Prompt)[:]:
        logits = model(input_ids=torch.tensor([row.prompt_ids + row.real_ids])).logits[0]
        logp = logits.log_softmax(-1)[-len(row.real_ids) - 1 : -1]
        found.append(sum(float(logp[i, token]) for i, token in enumerate(row.real_ids)))
    return found


# ---------------------------------------------------------------- adapters and merged models


def test_adapter_and_merged_at_once(make, tmp_path):
    run, out = make(), tmp_path / "out"
    told: list[str] = []
    written = export_run(run, read_targets("adapter,merged"), out, "1", tell=told.append)
    assert names(out) == {"adapter", "merged"}
    assert [found.what for found in written.compared] == ["adapter", "merged"]
    assert all(abs(found.off) < 1e-5 and found.largest(2) < 1e-3 for found in written.compared)
    assert len(written.table()[1]) == 2
    assert [event["event"] for event in written.facts()] == ["adapter", "merged", "exported"]
    assert len(told) == 4
    # the same weights, to the byte; nothing of the machine; the template with them
    adapter = out / "adapter"
    assert (adapter / "adapter_model.safetensors").read_bytes() == (
        run / "1" / "player" / "adapter_model.safetensors"
    ).read_bytes()
    about = json.loads((adapter / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == "base"
    assert "config.json" not in names(adapter)
    assert bare(run, adapter) == pytest.approx(own(run, "1"), abs=1e-3)
    for folder in ("adapter", "merged"):
        assert AutoTokenizer.from_pretrained(out / folder).chat_template == CHATML
        card = (out / folder / "README.md").read_text()
        assert f'folder = "{folder}"' in card
        assert str(run.parent) not in card


@pytest.mark.parametrize(("method", "hold"), [("lora", "merge"), ("rslora", "stack")])
def test_a_chain_of_loras_is_one(make, tmp_path, hold, method):
    run = make(f"{method}-{hold}", **{"method.name": method, "selfplay.hold": hold})
    export_run(run, read_targets("adapter"), tmp_path / "out", "1")
    adapter = tmp_path / "out" / "adapter"
    about = json.loads((adapter / "adapter_config.json").read_text())
    assert about["r"] == about["lora_alpha"] == 12
    assert bare(run, adapter) == pytest.approx(own(run, "1"), abs=1e-3)
    assert own(run, "1") != pytest.approx(own(run, "sft"), abs=1e-4)
    assert "--max-lora-rank 16" in (adapter / "README.md").read_text()


def test_a_sum_of_loras_keeps_each_ones_scale(make, tmp_path):
    """Ranks and scales that differ from module to module, and from adapter to adapter."""
    run = make("pattern", **{"method.rank_pattern": '{"q_proj": 2}', "selfplay.iterations": 1})
    first, config, tensors = run / "sft", *read_adapter(run / "sft")
    second = tmp_path / "second"
    second.mkdir()
    settings = json.loads((first / "adapter_config.json").read_text())
    settings |= {"use_rslora": True, "lora_alpha": 3, "alpha_pattern": {"q_proj": 5}}
    (second / "adapter_config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(0)
    other = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    save_file(other, second / "adapter_model.safetensors", {"format": "pt"})
    found, whole = joined([first, second])
    assert found.r == 8
    assert set(found.rank_pattern.values()) == {4}
    for name in [name for name in tensors if ".lora_A." in name]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        up = name.replace("lora_A", "lora_B")
        r = tensors[name].shape[0]
        theirs = 5 / r**0.5 if "q_proj" in name else 3 / r**0.5
        wanted = scale_of(config, module, r) * tensors[up] @ tensors[name] + theirs * other[up] @ other[name]
        torch.testing.assert_close(whole[up] @ whole[name], wanted, atol=1e-5, rtol=1e-5)


def test_a_chain_that_does_not_add_up_is_refused(make, tmp_path):
    run = make("dora", **{"method.name": "dora", "selfplay.hold": "merge", "selfplay.iterations": 1})
    with pytest.raises(RunError, match="is more than a LoRA on matrices"):
        export_run(run, read_targets("adapter"), tmp_path / "out", "0")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_way_out(make, method, tmp_path):
    """What is an adapter is loaded by PEFT alone, what is whole by transformers; the rest is refused at once."""
    row = METHODS[method]
    rate = 1e-4 if method in ("full", "pissa") else 5e-3
    run = make(f"of-{method}", method=method, **{"sft.lr": rate, "selfplay.lr": rate, "selfplay.iterations": 1})
    able = {"adapter": not row.whole, "merged": row.merges or row.whole}
    for kind, can in able.items():
        if can:
            written = export_run(run, read_targets(kind), tmp_path / kind, "0")
            assert abs(written.compared[0].off) < 1e-5
            assert written.compared[0].largest(1) < 1e-3
            assert (tmp_path / kind / kind / "README.md").exists()
        else:
            with pytest.raises(InputError, match=f"a player of method {method} "):
                export_run(run, read_targets(kind), tmp_path / kind, "0")
            assert not (tmp_path / kind).exists()
    if able["merged"]:
        base, out = (
            load_file(place / "model.safetensors") for place in (run.parents[1] / "base", tmp_path / "merged/merged")
        )
        assert base.keys() == out.keys()
        assert any(not torch.equal(base[name], out[name]) for name in base)
    else:
        with pytest.raises(RunError, match=f"adapter of method {method}, which is no change of the base's weights"):
            merge_run(run, tmp_path / "out", "0")
        assert not (tmp_path / "out").exists()


def test_what_is_not_the_player_is_set_aside(make, tmp_path, monkeypatch):
    keep = exporting.write_player

    def spoil(source: Any, out: Path) -> None:
        keep(source, out)
        weights = load_file(out / "adapter_model.safetensors")
        save_file({name: 0 * tensor for name, tensor in weights.items()}, out / "adapter_model.safetensors")

    monkeypatch.setattr(exporting, "write_player", spoil)
    with pytest.raises(LawBroken, match=r"law 12: what was written is not the player: its held-out NLL .* see .*unver"):
        export_run(make(), read_targets("adapter,merged"), tmp_path / "out", "1")
    assert names(tmp_path / "out") == {"adapter.unverified"}


def test_another_template_is_not_the_player(make, tmp_path, monkeypatch):
    keep = exporting.write_player

    def spoil(source: Any, out: Path) -> None:
        keep(source, out)
        (out / "chat_template.jinja").write_text(CHATML.replace("assistant", "model"))

    monkeypatch.setattr(exporting, "write_player", spoil)
    with pytest.raises(LawBroken, match="What is a prime numb' is"):
        export_run(make(), read_targets("adapter"), tmp_path / "out", "1")


def test_nothing_is_overwritten_and_a_kill_leaves_no_half(make, tmp_path, monkeypatch):
    run, out = make(), tmp_path / "out"
    export_run(run, read_targets("adapter"), out, "0")
    before = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists; give another --out, or --force"):
        export_run(run, read_targets("adapter,merged"), out, "1")
    assert names(out) == {"adapter"}

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "compare_adapter", kill)
        with pytest.raises(KeyboardInterrupt):
            export_run(run, read_targets("adapter,merged"), out, "1", force=True)
    assert names(out) == {"adapter"}
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == before
    export_run(run, read_targets("adapter"), out, "1", force=True)
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() != before
    (out / "merged").mkdir()
    (out / "merged" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="was not exported by sparring, so it is not replaced"):
        export_run(run, read_targets("merged"), out, "1", force=True)
    with pytest.raises(InputError, match="does not exist; make it"):
        export_run(run, read_targets("adapter"), tmp_path / "no" / "where", "1")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        export_run(run, read_targets("adapter"), tmp_path / "file", "1", force=True)


def test_by_default_it_is_named_after_run_and_player(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = export_run(make(), read_targets("adapter"), player="sft")
    assert [str(folder) for folder in written.folders] == ["plain-sft/adapter"]


def test_places_that_are_not_ours_are_safe(make, tmp_path):
    """The base, the run's own players, the user's folders and links: nothing of them is ever written to."""
    run, targets = make(), read_targets("merged")
    base = run.parents[1] / "base"
    before = {path: path.read_bytes() for path in [*base.iterdir(), *run.rglob("*")] if path.is_file()}
    for out, said in {
        base: "is the base, or holds it",
        run.parents[1]: "is the base, or holds it",
        run / "sft": "lies in the run plain",
        run / "new": "lies in the run plain",
    }.items():
        with pytest.raises(InputError, match=said):
            merge_run(run, out, "sft", force=True)
    with pytest.raises(InputError, match="lies in the run plain"):
        export_run(run, targets, run, "1", force=True)
    (tmp_path / "link").symlink_to(base)
    with pytest.raises(InputError, match="is a link"):
        merge_run(run, tmp_path / "link", "sft", force=True)
    out = tmp_path / "out"
    for name in ("merged.partial", "merged.x.partial", "merged.unverified", "merged.doomed"):
        (out / name).mkdir(parents=True)
        (out / name / "thesis.txt").write_text("precious")
    export_run(run, targets, out, "1")
    export_run(run, targets, out, "1", force=True)
    assert len([*out.rglob("thesis.txt")]) == 4
    assert names(out) == {"merged", "merged.partial", "merged.x.partial", "merged.unverified", "merged.doomed"}
    assert {path: path.read_bytes() for path in before} == before


def test_one_export_at_a_time(make, tmp_path, monkeypatch):
    keep = exporting.compare_merged

    def meddle(*given: Any) -> Any:
        with pytest.raises(InputError, match="another process is exporting to"):
            export_run(make(), read_targets("merged"), tmp_path / "out", "sft", force=True)
        return keep(*given)

    monkeypatch.setattr(exporting, "compare_merged", meddle)
    export_run(make(), read_targets("merged"), tmp_path / "out", "1")
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"merged"}


def test_what_a_kill_left_is_cleared_away(make, tmp_path):
    out = tmp_path / "out"
    for name in ("merged.abc.partial", "merged.def.doomed"):
        (out / name).mkdir(parents=True)
        (out / name / "sparring.json").write_text("{}")
    export_run(make(), read_targets("merged"), out, "1")
    assert names(out) == {"merged"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_another_player_does_not_pass_for_it(make, tmp_path, monkeypatch, dtype):
    """The mean can be right where single tokens are wrong."""
    keep = exporting.write_player

    def spoil(source: Any, out: Path) -> None:
        keep(source, out)
        about = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps({**about, "lora_alpha": about["lora_alpha"] * 0.6}))

    monkeypatch.setattr(exporting, "write_player", spoil)
    monkeypatch.setitem(compared.TOLERANCE, dtype, 9.0)
    with pytest.raises(LawBroken, match=r"the log-prob of a token is .* nats off"):
        export_run(make(), read_targets("adapter"), tmp_path / "out", "1", dtype=dtype)


def test_answers_end_where_the_runs_do(make, tmp_path, monkeypatch):
    """The template's end of a turn is not the base's end of a text: a bare generate must know both."""
    export_run(make(), read_targets("adapter,merged"), tmp_path / "out", "1")
    ends = list(open_player(make(), "1").ring.base.renderer.end_ids)
    assert len(ends) == 2
    assert json.loads((tmp_path / "out/merged/generation_config.json").read_text())["eos_token_id"] == ends
    assert f"eos_token_id={ends}" in (tmp_path / "out/adapter/README.md").read_text()
    monkeypatch.setattr("sparring.export.merged.GENERATION", "elsewhere.json")
    (tmp_path / "out" / "merged" / "generation_config.json").write_text('{"eos_token_id": 0}')
    said = other_tokens(tmp_path / "out" / "merged", open_player(make(), "1").ring.base.renderer, *_config(make()))
    assert said == [f"answers end at 0, and the run's at {ends}"]


def _config(run: Path) -> tuple[Any, bool, str]:
    return open_player(run, "1").config.model, True, "Be brief."


def test_a_changed_template_is_noticed(make, tmp_path):
    run = make()
    file = run.parents[1] / "base" / "chat_template.jinja"
    kept = file.read_text()
    file.write_text(kept.replace("im_start", "im_end"))
    try:
        with pytest.raises(RunError, match="is not the one this run was made with any more; restore it"):
            export_run(run, read_targets("merged"), tmp_path / "out", "1")
    finally:
        file.write_text(kept)


def test_no_place_of_the_users_is_told(make, tmp_path):
    """Paths with spaces and brackets, relative ones, and what the base's config brings."""
    place = tmp_path / "alice (work)" / "secret-client"
    shutil.copytree(make().parents[1] / "base", place / "my base")
    about = json.loads((place / "my base" / "config.json").read_text())
    (place / "my base" / "config.json").write_text(json.dumps({**about, "_name_or_path": "/home/alice/acme"}))
    shutil.copyfile(make().parents[1] / "rows.jsonl", place / "chats.jsonl")
    run = make("leak", **{"model.base": str(place / "my base"), "data.train": str(place / "chats.jsonl")})
    export_run(run, read_targets("adapter,merged"), tmp_path / "out", "1")
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in (".json", ".md", ".jinja"):
            assert not re.search("secret-client|alice|acme", path.read_text()), path


# ---------------------------------------------------------------- what is asked for


def test_targets_are_read():
    assert read_targets("adapter, merged") == Targets(adapter=True, merged=True)
    assert read_targets("gguf") == Targets(gguf=("q8_0",))
    assert read_targets("gguf:F16,gguf:q4_0,gguf:f16,gguf:lora") == Targets(gguf=("f16", "q4_0"), lora=True)
    assert read_targets("ollama") == Targets(gguf=("q8_0",), ollama=True)
    assert read_targets("ollama,gguf:f16") == Targets(gguf=("f16",), ollama=True)
    for words, said in {
        "": "is not known",
        "adaptor": 'did you mean "adapter"',
        "gguf:q9": "GGUF kind",
        "merged:f16": "merged has no kinds",
        "gguf:q4_k_m": "llama.cpp's llama-quantize",
        "adapter,": "is not known",
    }.items():
        with pytest.raises(InputError, match=said):
            read_targets(words)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_cannot_be_is_refused_before_all_else(method):
    row = METHODS[method]
    for words, can in {
        "adapter": not row.whole,
        "merged": row.merges or row.whole,
        "gguf": row.gguf != "no",
        "gguf:lora": row.gguf == "adapter",
    }.items():
        if can:
            refuse(read_targets(words), row, beside=False)
        else:
            with pytest.raises(InputError, match=f"of method {method} .*give --to"):
                refuse(read_targets(words), row, beside=False)
    with pytest.raises(InputError):
        refuse(read_targets("merged"), row, beside=True)


def test_the_base_is_not_exported(make, tmp_path):
    with pytest.raises(InputError, match="the base is not made by the run"):
        export_run(make(), read_targets("adapter"), tmp_path / "out", "base")
    with pytest.raises(RunError, match='no player "9"'):
        export_run(make(), read_targets("adapter"), tmp_path / "out", "9")
    untrained = make("untrained", **{"sft.epochs": 0, "selfplay.iterations": 0})
    with pytest.raises(RunError, match="this player is the base itself"):
        export_run(untrained, read_targets("adapter"), tmp_path / "out", "sft")
    assert not list(tmp_path.iterdir())


def test_a_push_is_one_verified_folder(make, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="uploads one verified folder; --to adapter and merged is not that"):
        export_run(make(), read_targets("adapter,merged"), tmp_path / "out", "1", pushed=Push("me/model"))
    with pytest.raises(InputError, match="there is no token for the hub"):
        export_run(make(), read_targets("adapter"), tmp_path / "out", "1", pushed=Push("me/model"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        export_run(make(), read_targets("adapter"), tmp_path / "out", "1", pushed=Push("me/model"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    sent: list[Any] = []
    monkeypatch.setattr(exporting, "push", lambda *given: sent.append(given) or "there")
    written = export_run(make(), read_targets("adapter"), tmp_path / "out", "1", pushed=Push("me/model", False))
    assert sent == [(tmp_path / "out" / "adapter", "me/model", False)]
    assert written.lines()[-1] == "uploaded: there"


# ---------------------------------------------------------------- GGUF


@needs_gguf
def test_without_llama_cpp_the_folder_says_so(make, tmp_path):
    out = tmp_path / "out"
    written = export_run(make(), read_targets("gguf:f16,gguf:lora,ollama"), out, "1", unchecked=True)
    assert names(out) == {"gguf.unverified", "gguf-lora.unverified"}
    assert names(out / "gguf.unverified") == {"plain-1-f16.gguf", "Modelfile", "README.md", "sparring.json"}
    assert names(out / "gguf-lora.unverified") == {"plain-1-lora.gguf", "README.md", "sparring.json"}
    assert sum("is not verified: llama.cpp was not asked" in line for line in written.lines()) == 2
    file = (out / "gguf.unverified" / "Modelfile").read_text()
    assert file.startswith("FROM ./plain-1-f16.gguf\n")
    assert 'SYSTEM """Be brief."""' in file
    assert 'PARAMETER stop "<|im_end|>"' in file
    template = file.split('TEMPLATE """')[1].split('"""')[0]
    turns = (Message("system", "Be brief."), Message("user", "1 and 2?"))
    wanted = open_player(make(), "1").ring.base.renderer.text(turns, ask=True)
    assert render(template, turns) == wanted


@needs_gguf
def test_an_architecture_without_gguf_is_refused_before_it_is_loaded(make, tmp_path, monkeypatch):
    run = make()
    base = run.parents[1] / "base" / "config.json"
    kept = base.read_text()
    base.write_text(kept.replace('"model_type": "llama"', '"model_type": "gpt_neox"'))
    monkeypatch.setattr(exporting, "take", lambda *_, **__: pytest.fail("it was loaded"))
    try:
        with pytest.raises(ModelError, match="is a gpt_neox model, which is not among those written as GGUF"):
            export_run(run, read_targets("gguf"), tmp_path / "out", "1", unchecked=True)
    finally:
        base.write_text(kept)


def test_gguf_without_its_libraries_is_refused(make, tmp_path, monkeypatch):
    monkeypatch.setattr("sparring.export.engines.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"GGUF needs gguf and llama-cpp-python.*sparring\[gguf\]"):
        export_run(make(), read_targets("gguf"), tmp_path / "out", "1")


@needs_gguf
@needs_llama
@pytest.mark.parametrize("hold", ["continue", "stack"])
def test_gguf_is_held_against_the_run_by_llama_cpp(make, tmp_path, hold):
    run, out = make(f"lora-{hold}", **{"selfplay.hold": hold}), tmp_path / "out"
    written = export_run(run, read_targets("gguf:f32,gguf:q8_0,gguf:lora,ollama"), out, "1")
    assert names(out) == {"gguf", "gguf-lora"}
    assert len(written.checked) == 3
    for name, checked in written.checked.items():
        assert abs(checked.file - checked.model) < (5e-3 if "q8_0" in name else 1e-4)
        assert checked.chats == 4
    assert names(out / "gguf-lora") == {f"lora-{hold}-1-lora.gguf", "README.md", "sparring.json"}


@needs_gguf
@needs_llama
def test_a_gguf_that_is_not_the_player_is_set_aside(make, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.TOLERANCE, "q4_0", 1e-9)
    with pytest.raises(LawBroken, match=r"law 12: .*q4_0.gguf is not the model it was made from: .*gguf\.unverified/"):
        export_run(make(), read_targets("gguf:q4_0"), tmp_path / "out", "1")
    assert names(tmp_path / "out") == {"gguf.unverified"}
    assert names(tmp_path / "out" / "gguf.unverified") == {"plain-1-q4_0.unverified.gguf", "sparring.json"}
