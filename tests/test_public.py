"""What the outside sees: the public names, a light import, a fast --help, and the command line's surface."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import sparring


def test_public_names() -> None:
    assert sorted(sparring.__all__) == [
        "Config",
        "SparringError",
        "build_config",
        "read_config",
        "run_job",
        "self_play",
    ]
    for name in sparring.__all__:
        assert getattr(sparring, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = sparring.nothing


def loaded(code: str) -> str:
    """The heavy modules that are loaded after some code ran in a fresh interpreter."""
    tail = "; import sys; print(sorted({'torch', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return found.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "code", ["import sparring", "import sparring.cli", "from sparring import build_config; build_config({})"]
)
def test_light_imports(code: str) -> None:
    assert loaded(code) == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sparring.cli import main; sys.argv = ['sparring', '--help']\n"
        "try: main()\nexcept SystemExit: pass\npass"
    )
    found = subprocess.run(
        [sys.executable, "-c", code + "\nprint('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert found.stdout.strip().endswith("False")
    for verb in (
        "run",
        "check",
        "runs",
        "report",
        "sample",
        "judge",
        "bench",
        "mt-bench",
        "merge",
        "export",
        "lab",
        "chat",
        "serve",
        "reinforce",
        "dpo",
        "reward",
    ):
        assert f"\n  {verb} " in found.stdout
    assert "\n  import " in found.stdout


SURFACE = {
    "run": {"--json", "--dry-run"},
    "check": {"--json"},
    "runs": {"--runs", "--json"},
    "report": {"--runs"},
    "judge": {"--judge", "--first", "--second", "--model", "--key-from", "--people", "--runs", "--json"},
    "bench": {
        "--tasks",
        "--include-path",
        "--limit",
        "--shots",
        "--player",
        "--batch-size",
        "--out",
        "--runs",
        "--json",
    },
    "chat": {
        "--vs",
        "--player",
        "--temperature",
        "--top-p",
        "--max-new-tokens",
        "--seed",
        "--system",
        "--best-of",
        "--scorer",
        "--runs",
    },
    "compare": {"--axis"},
    "import": {"--data", "--base", "--name", "--json"},
    "dpo": {"--json", "--dry-run"},
    "merge": {"--out", "--iteration", "--player", "--dtype", "--force", "--runs", "--json"},
    "export": {
        "--to",
        "--iteration",
        "--player",
        "--out",
        "--dtype",
        "--force",
        "--push",
        "--public",
        "--unverified",
        "--runs",
        "--json",
    },
    "reinforce": {"--json", "--dry-run"},
    "methods": {"--markdown", "--json"},
    "mt-bench": {"--questions", "--player", "--model-id", "--limit", "--max-new-tokens", "--out", "--runs"},
    "serve": {"--engine", "--player", "--host", "--port", "--api-key", "--show", "--runs"},
    "reward": {"--out", "--runs", "--json", "--dry-run"},
    "sample": {
        "--player",
        "--count",
        "--seed",
        "--temperature",
        "--max-new-tokens",
        "--best-of",
        "--scorer",
        "--runs",
    },
}


def test_surface_of_the_command_line() -> None:
    import typer.main

    from sparring.cli import app

    group = typer.main.get_command(app)
    assert set(group.commands) == {*SURFACE, "lab"}  # type: ignore[attr-defined]
    for verb, options in SURFACE.items():
        command = group.commands[verb]  # type: ignore[attr-defined]
        given = {name for p in command.params for name in p.opts if name.startswith("--")}
        assert given - {"--help"} == options
