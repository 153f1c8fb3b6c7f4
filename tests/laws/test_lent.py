"""What a run takes over from another one that was made in the same way: the same bytes as if it had made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparring.errors import RunError
from sparring.folder import MARKER, METRICS
from sparring.job import run_job
from tests.laws.lab import config

SHORT = ("data.eval_limit=8", "data.test_size=12", "evaluation.samples=1", "selfplay.iterations=1", "scorer=validity")
RL = ("reinforce.iterations=1", "reinforce.samples=3", "reinforce.prompts=16", "reinforce.lr=2e-3")
TIMES = (MARKER, METRICS)  # hold seconds


def contents(run: Path) -> dict[str, bytes]:
    """Every file of every phase but those with seconds in them."""
    files = [path for marker in run.rglob(MARKER) for path in marker.parent.rglob("*") if path.is_file()]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files if path.name not in TIMES}


@pytest.mark.parametrize("work", [(), RL], ids=["self-play", "rl"])
def test_the_best_of_n_takes_over_all_but_the_test(tmp_path: Path, work: tuple[str, ...]) -> None:
    first = run_job(config(tmp_path, *SHORT, *work, name="first"))
    more = (*SHORT, *work, "evaluation.best_of=3")
    seen: list[str] = []
    listen = lambda event: seen.append(event["phase"]) if event["event"] == "start" else None  # noqa: E731
    lent = run_job(config(tmp_path, *more, name="lent"), [listen], like=first)
    alone = run_job(config(tmp_path, *more, name="alone"))
    assert seen == ["test"]  # nothing else is made
    assert contents(lent) == contents(alone)
    assert (lent / "test/best.jsonl").read_bytes() != (first / "test/best.jsonl").read_bytes()
    for phase in ("0/player", "0/played", "best"):
        assert (lent / phase / METRICS).read_bytes() == (first / phase / METRICS).read_bytes()  # its costs, too


def test_what_is_made_otherwise_is_not_taken_over(tmp_path: Path) -> None:
    first = run_job(config(tmp_path, *SHORT, *RL, name="first"))
    seen: list[str] = []
    listen = lambda event: seen.append(event["phase"]) if event["event"] == "start" else None  # noqa: E731
    run_job(config(tmp_path, *SHORT, *RL, "reinforce.beta=0.3", name="other"), [listen], like=first)
    assert {"0/played", "0/player", "best", "test"} <= set(seen)
    assert not {"data", "sft"} & set(seen)


def test_what_was_changed_since_it_was_made_is_not_taken_over(tmp_path: Path) -> None:
    settings = (*SHORT, "selfplay.iterations=0", "sft.epochs=0.5")
    first = run_job(config(tmp_path, *settings, name="first"))
    path = first / "sft/adapter_model.safetensors"
    kept = path.read_bytes()
    path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(RunError, match=r"adapter_model\.safetensors has been changed since it was made; remove"):
        run_job(config(tmp_path, *settings, name="second"), like=first)
    path.unlink()
    with pytest.raises(RunError, match=r"has lost adapter_model\.safetensors"):
        run_job(config(tmp_path, *settings, name="second"), like=first)
