"""Fine-tuning that stops and goes back: looking changes nothing, and what is kept is what training made by then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparring.config import decisive
from sparring.configfile import build_config
from sparring.console import Plain
from sparring.errors import ConfigError, RunError
from sparring.job import identify, open_session
from sparring.learning import fine_tune
from sparring.models.players import Player
from sparring.models.trained import read_trained
from sparring.preparing import prepare_data
from sparring.report.findings import headline_notes
from sparring.report.plots import draw
from sparring.report.records import read_run
from sparring.run import Run
from sparring.selfplay import self_play
from sparring.stopping import NAMES, Yardstick, worse
from tests.laws import lab

DATA = ['data.split="[:36]"', "data.eval_limit=60", "method.dropout=0.1", "evaluation.show=0"]
FEW = [*DATA, "sft.batch_size=6", "sft.epochs=5", "sft.checks=5", "optimiser.save_every=100"]
OVER = [*FEW, "sft.lr=3e-3", "sft.epochs=20", "sft.checks=8"]  # 36 examples learnt by heart


def tuned(folder: Path, *overrides: str, name: str = "run") -> Path:
    """The folder of a run whose theta_0 is made."""
    with lab.session(folder, *overrides, name=name) as session:
        session.once("sft", fine_tune, session.once("data", prepare_data))
        session.run.gather()
        return session.run.folder


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows if row["event"] == kind]


def weights(run: Path) -> bytes:
    (found,) = (run / "sft").glob("*.safetensors")
    return found.read_bytes()


def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "sft" / "phase.json").read_text())["facts"]
    return found


# ---------------------------------------------------------------- the config


def test_a_scorer_is_needed_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"sft\.stop scorer needs something that says how good an answer is"):
        build_config({}, ["sft.stop=scorer"])


def test_older_run_folders_can_be_gone_on_with() -> None:
    plain = decisive(build_config({}))
    assert not {"stop", "patience", "checks"} & set(plain["sft"])
    assert decisive(build_config({}, ["sft.patience=5", "sft.checks=3"])) == plain
    used = decisive(build_config({}, ["sft.stop=nll"]))["sft"]
    assert used == {**plain["sft"], "stop": "nll", "patience": 2, "checks": 8}


def test_the_scorer_counts_where_it_makes_theta_0(tmp_path: Path) -> None:
    """In the section that θ_0 is made from, so that arms of a study with another scorer do not borrow it."""

    def made(*keys: str) -> Any:
        return identify(lab.config(tmp_path, *DATA, *keys)).same["sft"]

    one, other = 'scorer={name: regex, pattern: "1"}', 'scorer={name: regex, pattern: "2"}'
    assert made(one) == made(other) == made()
    assert made(one, "sft.stop=nll") == made(other, "sft.stop=nll") != made()
    assert made(one, "sft.stop=scorer") != made(other, "sft.stop=scorer")
    assert made(one, "sft.stop=scorer") == made(one, "sft.stop=scorer", "evaluation.temperature=0.5")
    tuned(tmp_path, *FEW, one, "sft.stop=scorer")
    with pytest.raises(RunError, match=r"was made with sft\.scorer"):
        tuned(tmp_path, *FEW, other, "sft.stop=scorer")


# ---------------------------------------------------------------- patience


def checks(*gaps: tuple[float, float] | None) -> list[dict[str, Any]]:
    found = [gap and {"mean": sum(gap) / 2, "low": gap[0], "high": gap[1]} for gap in gaps]
    return [{"event": "check", "difference": gap, "kept": 3} for gap in found]


ABOVE, BELOW, UNSURE = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3)


@pytest.mark.parametrize(
    ("gaps", "patience", "stops"),
    [
        ([None], 1, False),
        ([None, ABOVE], 1, True),
        ([None, ABOVE], 2, False),
        ([None, ABOVE, ABOVE], 2, True),
        ([None, ABOVE, UNSURE, ABOVE], 2, False),
        ([None, ABOVE, BELOW, ABOVE], 2, False),
        ([None, None, None], 2, False),
        ([ABOVE, ABOVE], 3, False),
    ],
)
def test_patience(gaps: list[Any], patience: int, stops: bool) -> None:
    nll = Yardstick(*NAMES["nll"], -1, lambda: ({}, []), lambda mine, best: None)
    reward = Yardstick(*NAMES["scorer"], 1, lambda: ({}, []), lambda mine, best: None)
    turned = [gap and (-gap[1], -gap[0]) for gap in gaps]
    for said in (worse(checks(*gaps), nll, patience), worse(checks(*turned), reward, patience)):
        assert (said is not None) == stops
        if said:
            assert "is worse than at step 3 by 0.2000 [0.1000, 0.3000], certainly so at" in said


# ---------------------------------------------------------------- looking


def test_looking_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    """With dropout, whose random numbers a look must not use up; by rules, and by players on a base of their own."""
    plain = tuned(tmp_path, *FEW, "sft.lr=2e-4", name="plain")
    assert not events(plain, "check")
    assert "kept" not in facts(plain)
    implicit = f"scorer={{name: implicit, run: '{plain}', player: sft, reference: base}}"
    for name, keys in (
        ("nll", ["sft.stop=nll"]),
        ("rules", ["sft.stop=scorer", "scorer=validity"]),
        ("players", ["sft.stop=scorer", implicit]),
    ):
        looked = tuned(tmp_path, *FEW, "sft.lr=2e-4", "sft.patience=99", *keys, name=name)
        assert events(looked, "step") == events(plain, "step")
        found = events(looked, "check")
        assert [check["step"] for check in found] == [6, 12, 18, 24, 30]
        assert [check["difference"] is None for check in found] == [True, False, False, False, False]
        assert (facts(looked)["kept"] == 30) == (weights(looked) == weights(plain))
        assert facts(looked).items() >= {**facts(plain), "kept": found[-1]["kept"]}.items()
    assert facts(tmp_path / "nll")["kept"] == 30  # the last step is a check, and may be the best
    assert facts(tmp_path / "nll")["rolled_back"] is None


def test_checks_are_as_many_as_asked_for_at_most(tmp_path: Path) -> None:
    for count, steps in ((1, [30]), (4, [8, 16, 24, 30]), (7, [5, 10, 15, 20, 25, 30])):
        run = tuned(tmp_path, *FEW, "sft.lr=2e-4", "sft.stop=nll", f"sft.checks={count}", name=f"run{count}")
        assert [check["step"] for check in events(run, "check")] == steps


# ---------------------------------------------------------------- stopping and rolling back


def test_what_was_learnt_by_heart_is_rolled_back(tmp_path: Path) -> None:
    with lab.session(tmp_path, *OVER, "sft.stop=nll", "selfplay.iterations=0") as session:
        self_play(session)
        session.run.gather()
        run = session.run.folder
    found, (stop,), (back,) = (events(run, kind) for kind in ("check", "stop", "rollback"))
    best = min(found, key=lambda check: check["heldout_nll"])
    assert stop["step"] == found[-1]["step"] < 120
    assert [check["difference"]["low"] > 0 for check in found[-2:]] == [True, True]
    assert back["kept"] == best["step"] == facts(run)["kept"] < back["of"] == stop["step"] == facts(run)["steps"]
    judged = next(event for event in events(run, "scores") if event["player"] == "sft")
    assert judged["nll"] == pytest.approx(best["heldout_nll"], rel=1e-6)  # θ_0 is the best check's player
    assert facts(run)["tokens"] == sum(step["tokens"] for step in events(run, "step"))  # all of them were paid
    said = (
        f"rolled back to step {best['step']} of {stop['step']}: held-out NLL per token {best['heldout_nll']:.4f} there"
    )
    assert back["text"].startswith(said)
    assert any(said in note for note in headline_notes(read_run(run)))
    assert "tuning" in [plot.name for plot in draw(read_run(run))]


def test_the_scorer_decides(tmp_path: Path) -> None:
    """Fine-tuning that goes wild: answers stop being valid, and the scorer's best check is handed over."""
    keys = ["sft.stop=scorer", "scorer=validity", "selfplay.iterations=0", "sft.lr=2e-2", "sft.patience=1"]
    with lab.session(tmp_path, *OVER, *keys) as session:
        self_play(session)
        session.run.gather()
        run = session.run.folder
    found = events(run, "check")
    best = max(found, key=lambda check: check["reward"])
    assert facts(run)["kept"] == best["step"] < found[-1]["step"]
    judged = next(event for event in events(run, "reward") if event["player"] == "sft")
    assert judged["reward"] == pytest.approx(best["reward"])  # asked with the same random numbers
    assert len(events(run, "stop")) == (found[-1]["step"] < 120)


@pytest.mark.parametrize(
    ("method", "rate"), [("lora", "2e-2"), ("prefix", "0.3"), ("houlsby", "0.1"), ("full", "1e-2"), ("pissa", "2e-3")]
)
def test_what_is_kept_is_what_training_had_made_by_then(tmp_path: Path, method: str, rate: str) -> None:
    """The bytes of a run with the same plan that is cut off after the step that was rolled back to."""
    keys = [*FEW, f"method={method}", f"sft.lr={rate}"]
    run = tuned(tmp_path, *keys, "sft.stop=nll", "sft.patience=1", name="stopped")
    kept = facts(run)["kept"]
    assert kept < facts(run)["steps"]

    def cut(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] > kept:
            raise KeyboardInterrupt

    settings = lab.config(tmp_path, *keys, "optimiser.save_every=1", name="cut")
    with Run(tmp_path / "cut") as opened:
        opened.listeners.append(cut)
        session = open_session(settings, opened)
        data = session.once("data", prepare_data)
        with pytest.raises(KeyboardInterrupt):
            session.once("sft", fine_tune, data)
        start = Player.untrained(session.ring.base, "continue")
        session.ring.challenge(start, session.seed("sft adapter"))
        read_trained(tmp_path / f"cut/sft.partial/checkpoints/checkpoint-{kept}/trained.safetensors", session.ring)
        (tmp_path / "cut/by-hand").mkdir()
        session.ring.save(tmp_path / "cut/by-hand", start, tmp_path / "cut", "by-hand")
    (made,) = (tmp_path / "cut/by-hand").glob("*.safetensors")
    assert made.read_bytes() == weights(run)


def test_few_kept_files_lie_about(tmp_path: Path) -> None:
    """A better check every time: those before it are dropped when a checkpoint is past it, and all at the end."""
    seen: list[list[str]] = []

    def count(event: dict[str, Any]) -> None:
        if event["event"] == "check":
            seen.append(sorted(path.name for path in tmp_path.rglob("kept-*")))

    settings = lab.config(tmp_path, *FEW, "sft.lr=2e-4", "sft.stop=nll", "optimiser.save_every=8")
    with Run(tmp_path / "run") as opened:
        opened.listeners.append(count)
        session = open_session(settings, opened)
        session.once("sft", fine_tune, session.once("data", prepare_data))
    names = [[f"kept-{step}.safetensors" for step in steps] for steps in ([6], [6, 12], [12, 18], [12, 24], [12, 24])]
    assert seen == [sorted(each) for each in names]  # a kill now goes on from step 0, 8, 16, 16, 24
    assert not list(tmp_path.rglob("kept-*"))


def test_what_was_kept_and_is_gone_is_missed(tmp_path: Path) -> None:
    def lose(event: dict[str, Any]) -> None:
        for path in tmp_path.rglob("kept-*") if event["event"] == "check" else []:
            path.unlink()

    with Run(tmp_path / "run") as opened:
        opened.listeners.append(lose)
        session = open_session(lab.config(tmp_path, *FEW, "sft.stop=nll"), opened)
        data = session.once("data", prepare_data)
        with pytest.raises(
            RunError, match=r"kept-6\.safetensors is gone, which was the best step so far; remove .*sft"
        ):
            session.once("sft", fine_tune, data)


def test_the_terminal_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    say = Plain()
    for event in (
        {"event": "start", "phase": "sft"},
        {"event": "stop", "phase": "sft", "step": 6, "reason": "worse {so}"},
        {"event": "rollback", "phase": "sft", "kept": 3, "of": 6, "text": "rolled back to step 3 of 6: …"},
        {"event": "phase", "phase": "sft", "seconds": 1.0},
    ):
        say(event)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  stopped early at step 6: worse {so}",
        "  rolled back to step 3 of 6: …",
    ]


def test_without_an_interval_nothing_is_stopped_and_that_is_said(tmp_path: Path) -> None:
    run = tuned(tmp_path, *OVER, "data.eval_limit=8", "sft.stop=nll", "sft.patience=1")
    (said,) = (event["text"] for event in events(run, "warning"))
    assert said.startswith("8 held-out prompts are too few for an interval, so sft.stop nll stops nothing")
    assert facts(run)["stopped"] is None
    assert facts(run)["steps"] == 120
    best = min(events(run, "check"), key=lambda check: check["heldout_nll"])
    assert facts(run)["kept"] == best["step"]


def test_an_adapter_to_start_from_is_not_checked(tmp_path: Path) -> None:
    run = tuned(tmp_path, *FEW, "sft.lr=2e-4", name="first")
    again = tuned(tmp_path, *FEW, f"start={run / 'sft'}", "sft.stop=nll", name="second")
    assert facts(again) == {"stopped": None, "steps": 0, "tokens": 0, "flops": 0, "trainable": 0}
