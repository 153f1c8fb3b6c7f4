"""fp16: loss scaling that leaves out no step, its place in a checkpoint, and where fp16 is chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import base_of, byte_tokenizer, ring_of, save_base

from sparring import scaling
from sparring.config import ModelConfig, OptimiserConfig
from sparring.configfile import build_config
from sparring.errors import TrainingDiverged
from sparring.job import run_job
from sparring.models import base as base_module
from sparring.models.base import choose_device, dtype_warning
from sparring.models.players import Player, fingerprint_tensors
from sparring.run import Run
from sparring.scaling import Scale
from sparring.trainer import fit

pytestmark = pytest.mark.usefixtures("undrawn")

# ---------------------------------------------------------------- the scale alone


def test_gradients_come_back_exactly():
    scale = Scale(2.0**10)
    given = [torch.tensor([3.0, -7e-8]), torch.tensor([1e-30])]
    scaled = [gradient * 2.0**10 for gradient in given]
    assert scale.fits(scaled)
    assert all(torch.equal(a, b) for a, b in zip(scaled, given, strict=True))
    assert (scale.value, scale.well) == (2.0**10, 1)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_it_halves_until_it_is_1(bad):
    scale = Scale(4.0, well=7)
    assert not scale.fits([torch.ones(2), torch.tensor([bad])])
    assert (scale.value, scale.well) == (2.0, 0)
    assert not scale.fits([torch.tensor([bad])])
    assert scale.value == 1.0
    assert scale.fits([torch.tensor([bad])])  # what is not finite now is seen before the update


def test_it_grows_seldom(monkeypatch):
    monkeypatch.setattr(scaling, "SELDOM", 3)
    scale = Scale(1.0)
    for _ in range(6):
        scale.fits([torch.ones(1)])
        scale.grow()
    assert (scale.value, scale.well) == (4.0, 0)
    scale = Scale(scaling.MOST, well=10)
    scale.grow()
    assert scale.value == scaling.MOST


def test_only_fp16_has_one():
    assert Scale.of(torch.float32) is Scale.of(torch.bfloat16) is None
    assert Scale.of(torch.float16) == Scale(scaling.FIRST)


def test_it_is_kept(tmp_path):
    Scale(8.0, 5).save(tmp_path)
    other = Scale()
    other.load(tmp_path)
    assert other == Scale(8.0, 5)


# ---------------------------------------------------------------- in training


class Task:
    """Mean log-prob of some tokens times a factor, with dropout-like noise; gradients of activations are in fp16."""

    def __init__(self, factor: float) -> None:
        self.factor, self.calls, self.drawn = factor, 0, []

    def split(self, items: list[int]) -> list[list[int]]:
        return [[item] for item in items]

    def weight(self, items: list[int]) -> float:
        return float(len(items))

    def loss(self, model: Any, items: list[int]) -> tuple[torch.Tensor, dict[str, tuple[float, float]]]:
        self.calls += 1
        self.drawn.append(torch.rand(()).item())
        loss = self.factor * model(input_ids=torch.tensor([[5 + items[0], 6, 7]])).logits.float().square().mean()
        return loss, {"tokens": (3.0, 1.0)}

    def inspect(self, step: int, means: dict[str, float]) -> None:
        self.means = dict(means)


def trained(folder: Path, dtype: torch.dtype, factor: float, steps: int = 3) -> tuple[Task, str, list[dict[str, Any]]]:
    """(the task, the trained weights' fingerprint, the step events) of a few steps."""
    base = base_of("llama", dtype=dtype)
    ring, task = ring_of(base), Task(factor)
    ring.challenge(Player.untrained(base), seed=0)

    def make(partial: Path) -> None:
        fit(
            run, partial, ring, task, [[2 * i, 2 * i + 1] for i in range(steps)], lr=1e-3, warmup=0.0,
            schedule="constant", optimiser=OptimiserConfig(), seed=0, track=[], watch=lambda step, means: None,
        )  # fmt: skip

    with Run(folder) as run:
        phase = run.once("x", make)
    events = [json.loads(line) for line in (phase.folder / "metrics.jsonl").read_text().splitlines()]
    steps_told = [event for event in events if event["event"] == "step"]
    return task, fingerprint_tensors(ring.trainable()), steps_told


def test_a_scale_too_large_is_halved_and_the_step_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "FIRST", 2.0**40)
    task, high, events = trained(tmp_path / "high", torch.float16, 1.0)
    scales = [event["loss_scale"] for event in events]
    assert len(events) == 3
    assert 1 < scales[0] < 2.0**40
    again = task.calls // 2 - 3
    assert again >= 1
    assert scales[-1] == 2.0 ** (40 - again)
    assert task.drawn[0:2] == task.drawn[2:4]  # dropout would be the same
    # the same updates as with the right scale from the start
    monkeypatch.setattr(scaling, "FIRST", scales[0])
    other, low, quiet = trained(tmp_path / "low", torch.float16, 1.0)
    assert [event["loss_scale"] for event in quiet] == scales
    assert other.calls < task.calls
    assert high == low


def test_small_gradients_are_not_lost(tmp_path, monkeypatch):
    """What comes of a tiny loss with a scale; and without one nothing does."""
    _, _, events = trained(tmp_path / "scaled", torch.float16, 1e-6, steps=1)
    assert events[0]["grad_norm"] > 0
    _, _, wide = trained(tmp_path / "wide", torch.float32, 1e-6, steps=1)
    assert events[0]["grad_norm"] == pytest.approx(wide[0]["grad_norm"], rel=0.02)
    monkeypatch.setattr(scaling, "FIRST", 1.0)
    _, _, unscaled = trained(tmp_path / "unscaled", torch.float16, 1e-6, steps=1)
    assert unscaled[0]["grad_norm"] < 0.9 * wide[0]["grad_norm"]


def test_a_loss_that_is_too_large_at_a_scale_of_1_diverges(tmp_path):
    with pytest.raises(TrainingDiverged, match="a gradient became NaN or infinite at step 1"):
        trained(tmp_path, torch.float16, 1e9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_know_no_scale(tmp_path, dtype):
    task, _, events = trained(tmp_path, dtype, 1.0)
    assert task.calls == 6
    assert all("loss_scale" not in event for event in events)
    assert "loss_scale" not in task.means


# ---------------------------------------------------------------- a whole run, killed


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if (path.is_file() and path.suffix in (".safetensors", ".arrow")) or path.name == "best.json"
    }


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("first", [2.0**34, 2.0**10])
def test_self_play_in_fp16_survives_a_kill(tmp_path, monkeypatch, first):
    """The scale is halved in the beginning, or grows; a run that goes on has it where the other had it."""
    monkeypatch.setattr(scaling, "FIRST", first)
    monkeypatch.setattr(scaling, "SELDOM", 2)
    folder = save_base(tmp_path / "base", "llama", byte_tokenizer(size=300))
    rows = [{"prompt": f"{a} and {b}:", "completion": f" {a + b}"} for a in range(4) for b in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(name: str) -> Any:
        return build_config(
            {
                "name": name, "runs": str(tmp_path), "threads": 1,
                "model": {"base": str(folder), "dtype": "fp16", "device": "cpu"},
                "data": {"train": str(tmp_path / "rows.jsonl"), "eval_size": 5},
                "method": {"r": 4, "dropout": 0.1},
                "sft": {"batch_size": 3, "lr": 1e-3},
                "selfplay": {"iterations": 1, "batch_size": 3, "lr": 1e-3, "stop_nll_rise": 9.0, "stop_real_drop": 9.0},
                "optimiser": {"save_every": 2},
            }
        )  # fmt: skip

    whole = run_job(config("whole"))
    killed = []

    def kill(event: dict[str, Any]) -> None:
        place = (event.get("phase"), event.get("step"))
        if event["event"] == "step" and place in (("sft", 3), ("0/player", 5)) and place not in killed:
            killed.append(place)
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            run_job(config("killed"), [kill])
    again = run_job(config("killed"), [kill])
    assert contents(again) == contents(whole)
    assert len(contents(whole)) > 4
    lines = [json.loads(line) for line in (whole / "sft" / "metrics.jsonl").read_text().splitlines()]
    scales = [line["loss_scale"] for line in lines if line["event"] == "step"]
    assert scales[0] < first if first > 2.0**20 else scales[-1] > first


# ---------------------------------------------------------------- where it is chosen


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((7, 0), torch.float16),
                                                   ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])  # fmt: skip
def test_gpus_without_bf16_take_fp16(monkeypatch, capability, dtype):
    for name, value in {
        "is_available": True, "device_count": 1, "get_device_capability": capability, "get_device_name": "Tesla T4"
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *given, value=value: value)
    assert choose_device(ModelConfig())[1] == dtype
    assert choose_device(ModelConfig(dtype="bf16"))[1] == torch.bfloat16
    assert choose_device(ModelConfig(dtype="fp16"))[1] == torch.float16
    assert choose_device(ModelConfig(dtype="fp32"))[1] == torch.float32
    assert dtype_warning(ModelConfig()) == ""
    asked = dtype_warning(ModelConfig(dtype="bf16"))
    assert ("Tesla T4 has no bf16" in asked) == (dtype == torch.float16)


def test_a_cpu_takes_fp16_only_if_asked(monkeypatch):
    monkeypatch.setattr(base_module, "fast_bf16", lambda: False)
    assert choose_device(ModelConfig(device="cpu"))[1] == torch.float32
    assert choose_device(ModelConfig(device="cpu", dtype="fp16"))[1] == torch.float16
