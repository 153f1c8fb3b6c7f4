"""The whole job on every architecture, with a tokenizer of the kind its models have, from folder to report."""

from __future__ import annotations

import html
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import ARCHITECTURES, CHATML, byte_tokenizer, piece_tokenizer, save_base

from sparring import cli
from sparring.configfile import build_config
from sparring.job import run_job
from sparring.models.players import Player
from sparring.plan import plan

pytestmark = pytest.mark.usefixtures("undrawn")

IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TOKENIZERS: dict[str, Any] = {
    "llama": lambda: piece_tokenizer(),  # no template: the plain one, with <s> in front
    "mistral": lambda: piece_tokenizer(template=INST),
    "gemma3": lambda: piece_tokenizer(("<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>", template=TURNS),
    "qwen2": lambda: byte_tokenizer(IM, eos="<|im_end|>", template=CHATML),
    "qwen3": lambda: byte_tokenizer(IM, eos="<|im_end|>", template=CHATML),
    "gpt_neo": lambda: byte_tokenizer(),
    "gpt_neox": lambda: byte_tokenizer(),
    "gpt2": lambda: byte_tokenizer(bos="<|endoftext|>", add_bos=True),
}
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "twenty"]


def chats(folder: Path) -> Path:
    """A dozen rows, some with two turns, of different lengths."""
    rows = []
    for index, number in enumerate(NUMBERS):
        turns = [("user", f"How many {number}?" + " Say it." * (index % 3)), ("assistant", f"It is {number}.")]
        if index % 4 == 0:
            turns += [("user", "And again?"), ("assistant", f"{number}" + " yes" * (index // 4))]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def settings(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    base = save_base(folder / "base", name, TOKENIZERS[name]())
    return {
        "name": name,
        "runs": str(folder / "runs"),
        "threads": 1,
        "model": {"base": str(base), "device": "cpu", "dtype": "fp32", **more},
        "data": {"train": str(chats(folder)), "eval_size": 3},
        "method": {"r": 4, "alpha": 8, "dropout": 0.1},
        "sft": {"epochs": 2, "lr": 1e-2, "batch_size": 4},
        "selfplay": {
            "iterations": 2, "lr": 1e-2, "batch_size": 4, "stop_nll_rise": None, "stop_real_drop": None,
        },
        "generation": {"max_new_tokens": 12},
        "evaluation": {"show": 2},
    }  # fmt: skip


def steps_of(run: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in events if event["event"] == "step"]


def check_run(run: Path, iterations: int, noise: float) -> None:
    """A report, a best player, and every iteration begun at log 2 and moved from there."""
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")
    best = json.loads((run / "best" / "best.json").read_text(encoding="utf-8"))
    assert best
    steps = steps_of(run)
    assert all(math.isfinite(value) for event in steps for value in event.values() if isinstance(value, float))
    prints = {Player.load(run / "sft").fingerprint}
    for iteration in range(iterations):
        own = [event for event in steps if event["phase"] == f"{iteration}/player"]
        assert [event["step"] for event in own] == list(range(1, len(own) + 1))
        assert len(own) >= 2
        assert own[0]["spin_loss"] == pytest.approx(math.log(2), abs=noise)
        assert own[0]["margin"] == pytest.approx(0, abs=4 * noise)
        assert max(abs(event["margin"]) for event in own[1:]) > 4 * noise, "it must learn something"
        assert own[0]["grad_norm"] > 0
        prints.add(Player.load(run / str(iteration) / "player").fingerprint)
    assert len(prints) == iterations + 1


SEPARATE = {"gpt_neo"}  # cannot share prompts: its attention is its own
SAID = "answers cannot share their prompt's pass with this base"


def says_so(run: Path) -> bool:
    """Whether a run warns, in its metrics and in both reports, that prompts are not shared; once or not at all."""
    events = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    said = [event["text"] for event in events if event["event"] == "warning" and SAID in event["text"]]
    assert len(said) <= 1
    page = html.unescape((run / "report.html").read_text(encoding="utf-8"))
    plain = (run / "report.md").read_text(encoding="utf-8")
    assert (SAID in page) == (SAID in plain) == bool(said)
    assert all("nats per token off" in text for text in said)
    return bool(said)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_whole_job(name: str, tmp_path: Path) -> None:
    run = run_job(build_config(settings(name, tmp_path)))
    check_run(run, 2, 1e-4)
    assert says_so(run) == (name in SEPARATE)
    losses = [event["loss"] for event in steps_of(run) if event["phase"] == "sft"]
    assert losses[-1] < losses[0]


def test_the_layout_is_said_without_fine_tuning(tmp_path: Path) -> None:
    chosen = settings("gpt_neo", tmp_path)
    chosen["sft"] |= {"epochs": 0}
    chosen["selfplay"] |= {"iterations": 1}
    assert says_so(run_job(build_config(chosen)))


@pytest.mark.parametrize("name", ["gpt_neo", "gpt2"])
def test_check_says_the_layout(name: str, tmp_path: Path) -> None:
    said = plan(build_config(settings(name, tmp_path))).text
    (line,) = [line for line in said.splitlines() if line.startswith("layout")]
    if name in SEPARATE:
        assert "a padded row for each answer; they cannot share their prompt: its log-probs would be" in line
    else:
        assert line == "layout    packed: a prompt is computed once for all its answers, without padding"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_whole_job_in_bf16(name: str, tmp_path: Path) -> None:
    run = run_job(build_config(settings(name, tmp_path, dtype="bf16")))
    check_run(run, 2, 1e-3)


@pytest.mark.parametrize(("name", "hold"), [("llama", "stack"), ("gpt2", "merge")])
def test_the_other_ways_to_hold_an_opponent(name: str, hold: str, tmp_path: Path) -> None:
    chosen = settings(name, tmp_path)
    chosen["selfplay"] |= {"hold": hold}
    check_run(run_job(build_config(chosen)), 2, 1e-4)


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(settings("qwen2", tmp_path)), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["sparring", "run", str(file), "selfplay.iterations=1", "name=cli"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    check_run(tmp_path / "runs" / "cli", 1, 1e-4)
    assert "report.html" in capsys.readouterr().out
