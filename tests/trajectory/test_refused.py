"""What must not go on says so in one sentence, with its exit code, and damages nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparring.data.messages import PLAIN
from sparring.files import fingerprint_file
from tests.trajectory.arena import KILLED, Arena, assert_same, assert_same_but_command, contents, write_rows

SHORT = {"selfplay__iterations": 1}


# ---------------------------------------------------------------- other processes, signals


def test_a_second_process_on_the_same_run(arena, unharmed):
    place = arena()
    first = subprocess.Popen(place.command, cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while first.poll() is None and not (place.run / "run.lock.yaml").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = place.go()
    first.send_signal(signal.SIGCONT)
    assert second.code == 2
    assert second.sentence.startswith("another process is working on runs/r;")
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    assert_same(contents(place.run), unharmed()["contents"])


def test_control_c_in_every_phase(arena, unharmed):
    place, drawn = arena(), random.Random(3)
    stopped = 0
    for phase in ("data", "sft", "sft-scores", "0/played", "0/player", "1/pairs", "1/player"):
        line = f'"event": "start", "phase": "{phase}"'
        delay = drawn.uniform(0, 0.2)
        result = place.go("run", "config.yaml", "--json", line=line, delay=delay, signal=signal.SIGINT)
        if result.code == 0:
            break  # the phase was over before the signal came
        assert result.code == 130
        assert result.sentence == "stopped; nothing is lost: the same command goes on from here"
        stopped += 1
    assert stopped >= 4
    assert place.go().code == 0
    assert_same_but_command(contents(place.run), unharmed()["contents"])


def test_control_c_on_a_process_of_its_own(arena):
    place = arena()
    process = subprocess.Popen(
        place.command, cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (place.run / "sft.partial").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "error: stopped; nothing is lost: the same command goes on from here\n"


# ---------------------------------------------------------------- other runs, other inputs


@pytest.fixture(scope="module")
def done(killer, tmp_path_factory) -> Arena:
    """A finished short run; `pristine` is a copy of its folder."""
    place = Arena(tmp_path_factory.mktemp("done"), killer, **SHORT)
    assert place.go().code == 0
    shutil.copytree(place.run, place.folder / "pristine")
    shutil.copytree(place.folder / "base", place.folder / "base kept")
    return place


@pytest.fixture
def finished(done: Arena) -> Arena:
    """The finished run, restored."""
    shutil.rmtree(done.run, ignore_errors=True)
    shutil.copytree(done.folder / "pristine", done.run)
    shutil.rmtree(done.folder / "base")
    shutil.copytree(done.folder / "base kept", done.folder / "base")
    write_rows(done.folder / "rows.jsonl")
    return done


@pytest.mark.parametrize(
    ("key", "value"), [("selfplay.beta", "0.3"), ("seed", "1"), ("method.r", "2"), ("generation.shard_size", "3")]
)
def test_a_folder_of_another_config(finished, key, value):
    before = contents(finished.run)
    result = finished.go("run", "config.yaml", f"{key}={value}")
    assert result.code == 2
    assert result.sentence.startswith(f"runs/r was made with {key}: ")
    assert f"now it is {value}; put it back, or start another run with name=..." in result.sentence
    assert_same(contents(finished.run), before)


def _turn_a_bit(path: Path, at: int = -9) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda folder: write_rows(folder / "rows.jsonl", count=23), "data fingerprint"),
        (lambda folder: write_rows(folder / "rows.jsonl", order=1), "data fingerprint"),
        (lambda folder: _turn_a_bit(folder / "base" / "model.safetensors"), "base fingerprint"),
        (lambda folder: (folder / "base" / "chat_template.jinja").write_text(PLAIN + "!"), "template fingerprint"),
    ],
    ids=["rows", "order", "weights", "template"],
)
def test_changed_data_and_base(finished, change, key):
    before = contents(finished.run)
    change(finished.folder)
    result = finished.go()
    assert result.code == 2
    assert result.sentence.startswith(f"runs/r was made with {key}: ")
    assert_same(contents(finished.run), before)


def test_a_config_corrected_before_anything_was_trained(arena, unharmed):
    place = arena(selfplay__iterations=2, seed=7)
    line = '"event": "start", "phase": "sft"'
    assert place.go("run", "config.yaml", "--json", line=line, delay=0.0, signal=signal.SIGKILL).code == KILLED
    place.config(**SHORT)
    assert place.go().code == 0
    assert_same(contents(place.run), unharmed(**SHORT)["contents"])


def test_a_folder_with_strange_files(arena):
    place = arena()
    place.run.mkdir(parents=True)
    (place.run / "diary.txt").write_text("mine")
    result = place.go()
    assert result.code == 2
    assert result.sentence == "runs/r is not a run folder (it holds diary.txt); give the run another name"
    assert sorted(path.name for path in place.run.iterdir()) == [".lock", "diary.txt"]
    assert (place.run / "diary.txt").read_text() == "mine"


@pytest.mark.parametrize("place_of_file", ["runs", "runs/r"])
def test_a_file_in_the_place_of_the_folder(arena, place_of_file):
    place = arena()
    file = place.folder / place_of_file
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    result = place.go()
    assert result.code == 2
    assert result.sentence.startswith("runs/r cannot be a folder: a file is in its place;")
    assert file.read_text() == "mine"


# ---------------------------------------------------------------- lost and changed files


def _lose(*names: str) -> Callable[[Path], None]:
    return lambda run: [(run / name).unlink() for name in names] and None


def _cut(name: str) -> Callable[[Path], None]:
    return lambda run: os.truncate(run / name, (run / name).stat().st_size // 2)


def _turned(name: str) -> Callable[[Path], None]:
    return lambda run: _turn_a_bit(run / name)


ADAPTER = "0/player/adapter_model.safetensors"
DAMAGE = {
    "lost adapter": (_lose(ADAPTER), f"runs/r/0/player has lost {Path(ADAPTER).name};"),
    "lost shard": (_lose("0/played/shard-00000.arrow"), "runs/r/0/played has lost shard-00000.arrow;"),
    "lost pairs": (_lose("0/pairs/pairs.arrow"), "runs/r/0/pairs has lost pairs.arrow;"),
    "lost answers": (_lose("sft-scores/answers.jsonl"), "runs/r/sft-scores has lost answers.jsonl;"),
    "lost marker": (_lose("0/pairs/phase.json"), "runs/r/0/pairs has lost phase.json;"),
    "cut adapter": (_cut(ADAPTER), f"runs/r/{ADAPTER} has been changed since it was made;"),
    "cut pairs": (_cut("0/pairs/pairs.arrow"), "runs/r/0/pairs/pairs.arrow has been changed since it was made;"),
    "cut marker": (_cut("0/pairs/phase.json"), "runs/r/0/pairs/phase.json is damaged ("),
    "cut lock": (_cut("run.lock.yaml"), "runs/r/run.lock.yaml is damaged, so its run cannot go on;"),
    "empty lock": (lambda run: (run / "run.lock.yaml").write_text(""), "runs/r/run.lock.yaml is damaged,"),
    "altered adapter": (_turned(ADAPTER), f"runs/r/{ADAPTER} has been changed since it was made;"),
    "altered play": (_turned("0/played/shard-00001.arrow"), "runs/r/0/played/shard-00001.arrow has been changed"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_finished_phase_that_was_damaged(finished, what):
    damage, sentence = DAMAGE[what]
    damage(finished.run)
    before = {path: path.read_bytes() for path in finished.run.rglob("*") if path.is_file()}
    result = finished.go()
    assert result.code == 2
    assert result.sentence.startswith(sentence)
    assert {path: path.read_bytes() for path in finished.run.rglob("*") if path.is_file()} == before


def test_a_removed_phase_is_made_again(finished):
    before = contents(finished.run)
    for name in ("sft", "0/pairs", "0/player"):
        shutil.rmtree(finished.run / name)
        assert finished.go().code == 0
        assert_same(contents(finished.run), before)


def test_law_11_for_an_adapter_that_was_exchanged_with_care(finished):
    """Even with a marker made to fit, the weights in memory are not the player's."""
    _turn_a_bit(finished.run / ADAPTER)
    marker = finished.run / "0/player/phase.json"
    content = json.loads(marker.read_text())
    content["files"][Path(ADAPTER).name] = fingerprint_file(finished.run / ADAPTER)
    marker.write_text(json.dumps(content))
    shutil.rmtree(finished.run / "0/scores")
    result = finished.go()
    assert result.code == 3
    assert result.sentence.startswith("law 11: the weights in memory (")


# ---------------------------------------------------------------- disks


def test_no_permission_at_the_first_writes(arena):
    place = arena(**SHORT)
    for number in range(1, 12):
        result = place.go(at=number, act="readonly")
        assert result.code == 2
        assert result.sentence.startswith("no permission to write or read (")


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A small file system of its own at `folder`; gives a function that changes its options."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_real_disk_that_grows_until_the_run_fits(arena, unharmed):
    place = arena(**SHORT)
    with _disk(place.folder / "runs", 8) as remount:
        sentences = []
        for size in range(8, 4000, 24):
            remount(f"size={size}k")
            result = place.go()
            if result.code == 0:
                break
            assert result.code == 2, result.err
            sentences.append(result.sentence)
        assert len(sentences) >= 10
        assert all("the disk is full" in s or "could not be written" in s for s in sentences), sentences
        assert_same(contents(place.run), unharmed(**SHORT)["contents"])


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_real_read_only_disk(arena, unharmed):
    place = arena(**SHORT)
    with _disk(place.folder / "runs", 8000) as remount:
        remount("ro")
        result = place.go()
        assert result.code == 2
        assert result.sentence.startswith("no permission to write or read (")
        remount("rw")
        line = '"event": "start", "phase": "0/played"'
        assert place.go("run", "config.yaml", "--json", line=line, delay=0.0, signal=signal.SIGKILL).code == KILLED
        remount("ro")
        result = place.go()
        assert result.code == 2
        assert result.sentence.startswith("no permission to write or read (")
        remount("rw")
        assert place.go().code == 0
        found = contents(place.run)
    assert_same_but_command(found, unharmed(**SHORT)["contents"])
