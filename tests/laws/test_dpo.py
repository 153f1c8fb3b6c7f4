"""DPO's laws on the real code path: the loss at step 0, the reference, ties, smoothing, and what a plant allows."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring.config import Config
from sparring.configfile import build_config
from sparring.data.pairs import Pair, Preference, Rows, write_rows
from sparring.dpo import settled_dpo
from sparring.files import read_json
from sparring.generation.play import played_rows
from sparring.job import open_session, run_folder, run_job
from sparring.laboratory import world
from sparring.models.players import Player
from sparring.models.scoring import score
from sparring.objectives.pairwise import at_zero, pairwise
from sparring.report.findings import verdict, warnings_of
from sparring.report.records import read_run
from sparring.run import Run
from sparring.tasks import PairTask
from tests.laws.lab import gradients, size


def plant(file: Path, count: int = 60, wrong: float = 0.0) -> str:
    """Pairs in which the shorter answer is right but for a share: an order that a model can learn."""
    drawn = random.Random(0)
    rows = []
    for row in world.rows(0, count, 0)[0]:
        answer = row["completion"]
        sides = [answer, answer + answer[: drawn.randint(2, 6)]]
        chosen, rejected = sides if drawn.random() >= wrong else sides[::-1]
        rows.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def config(folder: Path, *overrides: str, **dpo: Any) -> Config:
    tree: dict[str, Any] = {
        "name": "run", "runs": str(folder / "runs"), "threads": 1, "model": {"dtype": "fp32"},
        "data": {"train": plant(folder / "pairs.jsonl"), "eval_size": 20}, "method": {"r": 4},
        "sft": {"lr": 2e-3, "batch_size": 16}, "optimiser": {"save_every": 3}, "generation": {"max_new_tokens": 16},
        "dpo": {"beta": 0.5, "lr": 3e-3, "batch_size": 8, "epochs": 2, **dpo},
    }  # fmt: skip
    return settled_dpo(build_config(tree, overrides))


def events(phase: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (phase / "metrics.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == kind]


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_law_1_the_loss_begins_at_its_known_value(loss: str, tmp_path: Path) -> None:
    run = run_job(config(tmp_path, "sft.epochs=0", loss=loss, epochs=0.4))
    steps = events(run / "0" / "player", "step")
    known = {"sigmoid": math.log(2), "ipo": 0.25 / 0.5**2, "hinge": 1.0}[loss]
    assert steps[0]["spin_loss"] == pytest.approx(known, abs=1e-4)
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert abs(steps[-1]["spin_loss"] - known) > 1e-3


def test_the_planted_order_is_learnt_and_told(tmp_path: Path) -> None:
    run = run_job(config(tmp_path))
    (found,) = events(run / "0" / "preferred", "preferred")
    assert found["preference"] >= 0.9
    assert found["preference_longer"] == 0.0  # the longer answer was planted as the rejected one
    assert found["preference_longer_gap"]["mean"] == found["preference"]
    assert found["preference_longer_gap"]["low"] > 0
    assert found["n"] == found["prompts"] == 20
    assert found["rejected_shift"] < found["chosen_shift"]
    assert read_json(run / "best" / "best.json")["player"] == "0"
    assert "the higher implicit reward in 100.0 %" in verdict(run) or found["preference"] < 1
    assert "the longer answer is the chosen one in 0.0 %" in verdict(run)
    page = (run / "report.html").read_text()
    assert "Chosen and rejected log-probs" in page
    assert "the base fine-tuned on the chosen answers" in page
    assert "synthetic answers" not in (run / "report.md").read_text()
    fell = found["chosen_shift"] < -0.05
    assert any("became less likely" in one or "displacement" in one for one in warnings_of(read_run(run))) == fell


def test_the_reference_is_the_start_and_is_stored_once(tmp_path: Path) -> None:
    """From a player: its adapter on; the stored log-probs are its own, not those of the base under it."""
    first = run_job(config(tmp_path))
    start = first / "0" / "player"
    settings = config(tmp_path, f"start={start}", "name=second", epochs=0.4)
    told: list[dict[str, Any]] = []
    run = run_job(settings, [told.append])
    assert told[0]["event"] == "reference"
    assert f"the player in {start}, its adapter on" in told[0]["text"]
    with Run(run_folder(settings)) as opened:
        session = open_session(settings, opened)
        rows: Rows[Pair] = Rows([run / "0" / "pairs" / "pairs.arrow"], Pair)
        asked = [(row.prompt_ids, row.real_ids) for row in rows[:8]]
        stored = [row.opponent_real for row in rows[:8]]
        mine = score(session.ring.seat(Player.load(start)), session.ring.base, asked, 4096)
        base = score(session.ring.seat(Player.untrained(session.ring.base)), session.ring.base, asked, 4096)
    assert stored == pytest.approx(mine, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(stored, base, strict=True)) > 0.1


def test_a_tie_told_as_halves_pulls_nowhere(tmp_path: Path) -> None:
    """The two halves of a tie have opposite gradients at step 0, and their weights add to one pair."""
    settings = config(tmp_path, "sft.epochs=0")
    run = run_job(settings)
    with Run(run_folder(settings)) as opened:
        session = open_session(settings, opened)
        model = session.ring.challenge(Player.load(run / "sft"), seed=1)
        with torch.no_grad():  # B is not 0, or nothing would have a gradient but B
            for parameter in session.ring.trainable().values():
                parameter.add_(0.01)
        one = Rows([run / "0" / "pairs" / "pairs.arrow"], Pair)[0]
        asked = [(one.prompt_ids, ids) for ids in (one.real_ids, *one.synthetic_ids)]
        real, other = score(model, session.ring.base, asked, 4096)
        ids = (one.key, one.prompt_ids)
        there = Pair(*ids, one.real_ids, one.synthetic_ids, real, [other], 0, 0.5)
        back = Pair(*ids, one.synthetic_ids[0], [one.real_ids], other, [real], 0, 0.5)
        write_rows(tmp_path / "tie.arrow", [there, back], Pair)
        task = PairTask(session.ring.base, Rows([tmp_path / "tie.arrow"], Pair), settings.selfplay, 0, 4096)
        assert task.weight([0, 1]) == 1.0
        value, both = gradients(session, task, [0, 1])
        _, alone = gradients(session, task, [0])
        assert value == pytest.approx(math.log(2), abs=1e-4)
        assert size(both) < 1e-3 * size(alone)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_ipo_is_its_equation_and_ends_at_its_target(beta: float) -> None:
    """(h - 1/2β)² of the unscaled margin h; its least value is 0, at h = 1/2β."""
    h = torch.linspace(-4, 4, 9, dtype=torch.float64)
    assert torch.allclose(pairwise((beta * h).unsqueeze(-1), "ipo", beta), (h - 1 / (2 * beta)) ** 2)
    assert at_zero("ipo", beta) == pytest.approx(1 / (2 * beta) ** 2)
    assert pairwise(torch.tensor([[0.5]]), "ipo", beta).item() == 0


def test_label_smoothing_is_cdpo() -> None:
    """(1-ε)·log(1+e^-m) + ε·log(1+e^m): least where σ(m) = 1-ε, and log 2 at 0."""
    m = torch.linspace(-3, 3, 7, dtype=torch.float64).unsqueeze(-1)
    value = pairwise(m, "logistic", flipped=0.2)
    expected = -0.8 * torch.nn.functional.logsigmoid(m) - 0.2 * torch.nn.functional.logsigmoid(-m)
    assert torch.allclose(value, expected[:, 0])
    least = torch.tensor([[math.log(0.8 / 0.2)]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(pairwise(least, "logistic", flipped=0.2).sum(), least)
    assert slope.item() == pytest.approx(0, abs=1e-12)


def test_smoothing_reaches_the_task(tmp_path: Path) -> None:
    run = run_job(config(tmp_path, "sft.epochs=0", label_smoothing=0.4, epochs=4))
    assert read_json(run / "0" / "pairs" / "phase.json")["facts"]["flipped"] == 0.4
    assert events(run / "0" / "player", "step")[-1]["spin_loss"] > 0.67  # at least the entropy of the smoothed label


def test_the_pairs_of_a_run_are_its_own_tokens(tmp_path: Path) -> None:
    """`data.train: RUN`: real over synthetic, ids as they were sampled; held-out pairs from judging."""
    tree: dict[str, Any] = {
        "name": "spin", "runs": str(tmp_path / "runs"), "threads": 1, "model": {"dtype": "fp32"},
        "data": {"split": "[:40]", "eval_limit": 12}, "method": {"r": 4}, "sft": {"lr": 2e-3},
        "selfplay": {"iterations": 1, "lr": 1e-3, "samples": 2}, "generation": {"max_new_tokens": 16},
    }  # fmt: skip
    spin = run_job(build_config(tree))
    settings = config(tmp_path, f"data.train={spin}", f"start={spin / '0' / 'player'}", "name=dpo", epochs=0.4)
    run = run_job(settings)
    pairs: list[Preference] = Rows([run / "data" / "train_pairs.arrow"], Preference)[:]
    played = played_rows(spin / "0" / "played")[:]
    expected = [(row.real_ids, ids) for row in played for ids in row.synthetic_ids if ids != row.real_ids]
    assert [(row.chosen_ids, row.rejected_ids) for row in pairs] == expected
    assert pairs[0].source.startswith("spin/0/played[row ")
    assert len(Rows([run / "data" / "eval_pairs.arrow"], Preference)) > 0


def test_judging_held_out_pairs_is_in_no_budget(tmp_path: Path) -> None:
    """What is spent on the pairs does not depend on how many are held out, to be judged by."""
    spent = []
    for held in (10, 20):
        settings = (f"data.eval_size={held}", "data.split='[:60]'", "sft.epochs=0.5", f"name=of-{held}")
        run = run_job(config(tmp_path, *settings, epochs=0.4))
        (told,) = events(run / "0" / "pairs", "phase")
        rows: Rows[Pair] = Rows([run / "0" / "pairs" / "pairs.arrow"], Pair)
        lengths = [2 * len(one.prompt_ids) + len(one.real_ids) + len(one.synthetic_ids[0]) for one in rows[:]]
        assert told["tokens"] <= sum(lengths)
        assert events(run / "0" / "preferred", "phase")[0]["tokens"] > 0
        spent.append(told["tokens"] / len(rows))
    assert spent[0] == pytest.approx(spent[1], rel=0.05)
