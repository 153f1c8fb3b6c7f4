"""Model cards: valid for the hub's own classes, true to the run, without the user's paths, and with code that runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from tests.fakes import HOSTILE, best, events, lock, make_run
from tests.helpers import CHATML, byte_tokenizer, save_base

from sparring.configfile import build_config
from sparring.errors import InputError, RunError
from sparring.export.card import write_card
from sparring.export.card_facts import command_of, licence_of, scrubbed
from sparring.job import run_job
from sparring.methods import METHODS
from sparring.report.records import read_run
from sparring.report.tables import result_lines

MIT = "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy, without restriction"


def fake(
    folder: Path,
    method: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    chat: bool = False,
    rows: list[dict[str, Any]] | None = None,
    chosen: str = "0",
    **locked: Any,
) -> Path:
    """A run folder with players θ_0, θ_1 and θ_2, whose config says what is given."""
    tree = lock(**locked)
    tree["config"] |= {"method": method or {"name": "lora", "r": 16}, "model": {"base": "laboratory", **(model or {})}}
    tree["config"]["data"] |= data or {}
    make_run(folder, events() if rows is None else rows, tree, best(chosen, label="θ_1"))
    for place in ("sft", "0/player", "1/player"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / "player.json").write_text("{}")
    (folder / "data").mkdir()
    (folder / "data" / "phase.json").write_text(json.dumps({"facts": {"chat": chat}}))
    return folder


def card(run: Path, kind: str = "adapter", player: str = "best", name: str = "out") -> ModelCard:
    """The card that is written for a player, as the hub's library reads it."""
    out = run.parent / name
    out.mkdir(exist_ok=True)
    return ModelCard(write_card(run, player, out, kind).read_text(encoding="utf-8"))


def kinds(name: str) -> list[str]:
    row = METHODS[name]
    fits = {"adapter": not row.whole, "merged": row.merges or row.whole, "gguf": row.gguf != "no"}
    return [kind for kind, can in fits.items() if can]


# ---------------------------------------------------------------- every method


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in METHODS for kind in kinds(name)])
def test_every_method_has_a_valid_card(tmp_path: Path, name: str, kind: str) -> None:
    found = card(fake(tmp_path / "run", {"name": name}), kind)
    head = found.data.to_dict()
    assert head == yaml.safe_load(found.data.to_yaml())
    assert head["base_model"] == "laboratory"
    assert head["base_model_relation"] == {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}[kind]
    assert head["library_name"] == {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}[kind]
    assert head["license"] == "apache-2.0"
    assert head["pipeline_tag"] == "text-generation"
    assert {"sparring", "spin", name} <= set(head["tags"])
    assert "datasets" not in head
    assert "language" not in head
    arxiv = re.search(r"\d{4}\.\d{5}", METHODS[name].source)
    assert arxiv is not None
    assert f"{arxiv[0]}" in found.text
    for block in re.findall(r"```python\n(.*?)```", found.text, re.DOTALL):
        compile(block, "card", "exec")
    headings = re.findall(r"^## (.*)$", found.text, re.MULTILINE)
    assert headings == [
        "How good it is", "Warnings", "How to use it", "Data", "Method and settings", "How it was made", "Licence",
        "Citation",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "tags", "said", "cited"),
    [
        ({"dpo": {"loss": "sigmoid"}}, {"preference", "dpo"}, "chosen and a rejected answer (DPO)", "2305.18290"),
        ({"dpo": {"loss": "ipo"}}, {"preference", "ipo"}, "chosen and a rejected answer (IPO)", "2310.12036"),
        ({"reinforce": {"algorithm": "rloo"}, "scorer": {"name": "regex"}}, {"reinforcement-learning", "rloo"},
         "by reinforcement learning (RLOO) on the rewards of scorer regex", "2402.14740"),
    ],
    ids=["dpo", "ipo", "rloo"],
)  # fmt: skip
def test_a_card_of_another_verb_does_not_speak_of_self_play(
    tmp_path: Path, section: dict[str, Any], tags: set[str], said: str, cited: str
) -> None:
    run = fake(tmp_path / "run", {"name": "lora"})
    path = run / "run.lock.yaml"
    lock = yaml.safe_load(path.read_text(encoding="utf-8"))
    lock["config"] |= section
    path.write_text(yaml.safe_dump(lock), encoding="utf-8")
    found = card(run, player="0")
    assert tags <= set(found.data.tags)
    assert {"spin", "self-play"}.isdisjoint(found.data.tags)
    assert said in found.text
    assert cited in found.text
    assert "chen2024selfplay" not in found.text
    assert "(SPIN)" not in found.text
    assert "| selfplay |" not in found.text


@pytest.mark.parametrize("name", METHODS)
def test_only_engines_that_fit_are_told(tmp_path: Path, name: str) -> None:
    row, kind = METHODS[name], kinds(name)[0]
    text = card(fake(tmp_path / "run", {"name": name}), kind).text
    assert ("vllm serve" in text) == (row.vllm != "no")
    assert ("--enable-lora" in text) == (row.vllm == "adapter")
    assert ("--to gguf" in text) == (row.gguf != "no")
    assert ("gguf:lora" in text) == (row.gguf == "adapter")
    assert ("import sparring.models.bottleneck" in text) == (name in ("houlsby", "pfeiffer"))
    for wrong in {"adapter", "merged", "gguf"} - set(kinds(name)):
        with pytest.raises(InputError, match=f"of method {name} cannot be had as {wrong}; give"):
            card(tmp_path / "run", wrong)


@pytest.mark.parametrize(("method", "rank"), [({"r": 9}, 16), ({"name": "pissa", "r": 16}, 32), ({"r": 600}, 0)])
def test_vllm_is_given_room_for_the_rank(tmp_path: Path, method: dict[str, Any], rank: int) -> None:
    text = card(fake(tmp_path / "run", {"name": "lora", **method})).text
    assert (f"--max-lora-rank {rank} " in text) == bool(rank)
    assert ("sparring merge run --iteration 0 --out merged" in text) == (not rank)


# ---------------------------------------------------------------- what the run says


def test_the_card_says_what_the_run_found(tmp_path: Path) -> None:
    run = fake(tmp_path / "run")
    text = card(run).text
    assert "# demo: θ₁" in text
    assert "**Best player: θ₁. Held-out NLL 1.2305 per token against 1.2480 for θ₀ (SFT)" in text
    for line in result_lines(read_run(run)):
        for cell in line.cells:
            assert cell.figure in text
            assert cell.interval.strip("[]") in text
    assert "| θ₁ (this) ★ |" in text
    assert "not the player that the run chose" not in text
    assert "likelihood displacement" in text
    assert "<script>" not in text
    assert HOSTILE not in text
    other = card(run, player="1").text
    assert "This is θ₂, not the player that the run chose (θ₁)." in other
    assert "| θ₂ (this) |" in other
    assert "| selfplay | loss | logistic |" in text
    assert "| method | r | 16 |" in text


def test_the_same_run_gives_the_same_card(tmp_path: Path) -> None:
    run = fake(tmp_path / "run")
    assert card(run).content == card(run).content


def test_what_quantising_cost_and_how_to_load_it(tmp_path: Path) -> None:
    row = {"event": "quantisation", "quantised": "nf4", "plain_bytes": 4e8, "bytes": 1e8, "plain_nll": 1.5, "nll": 1.6}
    run = fake(tmp_path / "run", model={"quantise": "nf4", "double_quant": False}, rows=[*events(), row])
    text = card(run).text
    assert "held in nf4 while it was trained" in text
    assert "held-out NLL of the base 1.5000 → 1.6000" in text
    assert 'bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=False' in text
    assert "nf4" in card(run).data.tags
    assert "BitsAndBytesConfig" not in card(run, "merged").text


def test_a_start_and_a_study_are_told(tmp_path: Path) -> None:
    study = tmp_path / "study"
    run = fake(study / "arms" / "lr" / "1e-4" / "seed-2")
    (study / "study.lock.yaml").write_text("{}")
    (study / "study.json").write_text(json.dumps({"headline": "No difference was seen."}))
    text = card(run).text
    assert "one run of a study: arm `lr/1e-4`, seed-2" in text
    assert "The study's verdict: No difference was seen." in text
    assert "sparring export study/arms/lr/1e-4/seed-2 --iteration 0 --out mine" in text
    begun = fake(tmp_path / "begun")
    tree = yaml.safe_load((begun / "run.lock.yaml").read_text())
    tree["config"]["start"] = "/home/someone/adapters/mine"
    (begun / "run.lock.yaml").write_text(yaml.safe_dump(tree))
    text = card(begun).text
    assert "it is the adapter `mine`" in text
    assert "someone" not in text


# ---------------------------------------------------------------- base, data, licences, paths


def test_a_local_base_is_told_by_its_name_and_licence(tmp_path: Path) -> None:
    base = tmp_path / "My Models" / "tiny-1"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    run = fake(tmp_path / "run", model={"base": str(base)})
    found = card(run)
    assert found.data.base_model == "tiny-1"
    assert found.data.license == "other"
    assert found.data.to_dict()["license_name"] == "unknown"
    assert "it is not an id" in found.text
    assert "licence of the base could not be found" in found.text
    assert "My Models" not in found.content
    (base / "LICENSE").write_text(MIT)
    assert card(run).data.license == "mit"
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: qwen\nlanguage:\n- en\n---\nA model\n")
    head = card(run).data.to_dict()
    assert (head["license"], head["license_name"], head["language"]) == ("other", "qwen", ["en"])
    (base / "README.md").unlink()
    (base / "LICENSE").unlink()
    (base / "config.json").write_text('{"license": "Apache-2.0"}')
    assert card(run).data.license == "apache-2.0"


def test_ids_of_the_hub_are_linked(tmp_path: Path) -> None:
    base = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / "abc"
    base.mkdir(parents=True)
    (base / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004")
    run = fake(tmp_path / "run", model={"base": str(base)}, data={"train": "owner/rows", "eval": "./held.jsonl"})
    found = card(run)
    assert found.data.base_model == "owner/tiny"
    assert found.data.license == "apache-2.0"
    assert found.data.datasets == ["owner/rows"]
    assert "[owner/tiny](https://huggingface.co/owner/tiny)" in found.text
    assert "| held out | held.jsonl (a local file) | not known |" in found.text
    gone = fake(tmp_path / "gone", model={"base": "owner/nowhere-at-all"})
    found = card(gone)
    assert found.data.license == "other"
    assert "is not at hand" in found.text
    for name in (found.data.base_model, "owner/tiny"):
        validate_repo_id(name)


def test_a_licence_beside_the_data_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("")
    (tmp_path / "data" / "LICENSE").write_text(MIT)
    run = fake(tmp_path / "run", data={"train": str(tmp_path / "data" / "rows.jsonl")})
    found = card(run)
    assert "| trained on | rows.jsonl (a local file) | mit, by a file beside the data |" in found.text
    assert str(tmp_path) not in found.content


def test_no_path_of_the_machine_is_told(tmp_path: Path) -> None:
    home = "/home/some one/work dir"
    run = fake(
        tmp_path / "run",
        model={"base": f"{home}/base"},
        data={"train": f"{home}/rows.jsonl", "system": "/no_think and/or think"},
        rows=[*events(), {"event": "warning", "phase": "sft", "text": f"odd {home}/rows.jsonl, /opt/secret/x and 1/2"}],
        command=f"sparring run '{home}/my config.yaml' 'runs={home}/runs' name=demo",
    )
    found = card(run)
    for part in ("some one", "work dir", "secret", str(tmp_path)):
        assert part not in found.content
    assert "odd rows.jsonl, x and 1/2" in found.text
    assert command_of(read_run(run)) == "sparring run 'my config.yaml' runs=runs name=demo"
    assert "sparring run 'my config.yaml' runs=runs name=demo" in found.text
    assert "system: /no_think and/or think" in found.text
    told = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", found.text, re.DOTALL)[-1])
    assert told["config"]["data"]["train"] == "rows.jsonl"
    assert told["config"]["selfplay"]["beta"] == [0.1, 0.3]
    assert "https://huggingface.co/a/b" in scrubbed(read_run(run), "see https://huggingface.co/a/b")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("Redistribution and use in source and binary forms ... Neither the name of", "bsd-3-clause"),
        ("GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007", "gpl-3.0"),
        ("Creative Commons Attribution-ShareAlike 4.0 International", "cc-by-sa-4.0"),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT", "llama3.2"),
        ("All rights reserved.", "other"),
    ],
)
def test_licences_are_recognised(tmp_path: Path, words: str, name: str) -> None:
    from sparring.export.card_facts import Source

    (tmp_path / "LICENSE.txt").write_text(words)
    assert licence_of(Source("x", folder=tmp_path)).name == name


# ---------------------------------------------------------------- prompts, refusals


def test_the_template_is_told_where_the_tokenizer_lacks_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer_config.json").write_text("{}")
    run = fake(tmp_path / "run", model={"base": str(base)}, chat=True)
    found = card(run)
    assert "### Assistant:\n{{ message.content }}" in found.text.replace("\\n", "\n")
    assert "conversational" in found.data.tags
    assert "apply_chat_template" in found.text
    (base / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert "the chat template of the base's tokenizer" in card(run).text
    assert "no chat template" in card(fake(tmp_path / "plain")).text


def test_what_there_is_not_is_refused(tmp_path: Path) -> None:
    run = fake(tmp_path / "run")
    with pytest.raises(InputError, match='kind "zip"'):
        card(run, "zip")
    with pytest.raises(InputError, match="the base is no player"):
        card(run, player="base")
    with pytest.raises(RunError, match='no player "9"'):
        card(run, player="9")
    with pytest.raises(InputError, match="does not exist"):
        write_card(run, "best", tmp_path / "nowhere", "adapter")


# ---------------------------------------------------------------- the code in it runs


@pytest.mark.parametrize(
    ("name", "template"), [("lora", CHATML), ("lora", None), ("houlsby", CHATML), ("prompt", CHATML)]
)
def test_the_code_in_a_card_answers(
    tmp_path: Path, name: str, template: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_base(tmp_path / "base", "llama", byte_tokenizer(template=template))
    rows = [
        {"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "x"}]} for n in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "run", "runs": str(tmp_path), "threads": 1, "method": name,
        "model": {"base": str(tmp_path / "base"), "dtype": "fp32", "device": "cpu"},
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval_size": 3}, "selfplay": {"iterations": 0},
    }  # fmt: skip
    run = run_job(build_config(tree, []), [])
    out = tmp_path / "mine"
    os.rename(run / "sft", out)
    (run / "sft").mkdir()
    (run / "sft" / "player.json").write_text("{}")
    text = write_card(run, "sft", out, "adapter").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0].replace("max_new_tokens=256", "max_new_tokens=4")
    assert str(tmp_path) not in text
    monkeypatch.chdir(tmp_path)  # the card names folder and base as they are called here
    said: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about positions
        exec(code, said)
    assert said["said"].shape[1] > said["ids"]["input_ids"].shape[1]
    assert type(said["model"]).__name__.startswith("PeftModel")
