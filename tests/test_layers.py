"""Imports go downward: each module has a row, and imports only from lower rows (or, in report/, its own order)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sparring"

ROWS = {
    "errors": 0,
    "config": 1,
    "configfile": 2,
    "files": 1,
    "watch": 0,
    "crew": 1,
    "folder": 2,
    "machine": 1,
    "run": 3,
    "laboratory": 1,  # the roof: two paths
    "laboratory.world": 1,
    "laboratory.tokenizer": 2,
    "objectives.pairwise": 1,
    "objectives.sft": 1,
    "objectives": 2,
    "generation.sampling": 1,
    "generation.base": 2,
    "data": 0,
    "data.messages": 1,
    "data.formats": 2,
    "data.pairs": 2,
    "data.packing": 1,
    "data.collate": 1.5,
    "data.sources": 3,
    "data.load": 4,
    "data.prepare": 5,
    "models": 0,
    "models.head": 1,
    "models.attention": 2,
    "models.forward": 2.2,
    "models.layout": 2.4,
    "models.memory": 4,
    "models.base": 2.6,
    "models.methods": 2.6,
    "models.flops": 2.6,
    "models.players": 3,
    "models.scoring": 3,
    "generation": 0,
    "generation.cache": 1,
    "generation.local": 4,
    "laboratory.exact": 2,
    "laboratory.pretrain": 5,
    "tasks": 5,
    "evaluation": 0,
    "evaluation.answers": 1,
    "evaluation.statistics": 1,
    "evaluation.nll": 5,
    "schedule": 1,
    "arguments": 4,
    "trainer": 6,
    "session": 6,
    "preparing": 7,
    "generation.play": 7,
    "evaluation.choose": 7,
    "evaluation.judge": 8,
    "learning": 8,
    "opponent": 8,
    "selfplay": 9,
    "report": 0,
    "report.records": 1,
    "report.tables": 2,
    "report.findings": 3,
    "report.sheets": 3,
    "report.svg": 3,
    "report.markdown": 4,
    "report.plot_steps": 4,
    "report.plot_players": 4,
    "report.plots": 5,
    "report.page": 6,
    "console": 4,
    "job": 10,
    "plan": 11,
    "browse": 11,
    "cli": 12,
    "__main__": 13,
    "": 13,  # the package's own front door
}


def modules() -> dict[str, Path]:
    """Dotted name below `sparring` of every source file."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(file: Path) -> set[str]:
    """Names below `sparring` that a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sparring":
            inside = node.module.removeprefix("sparring").lstrip(".")
            for alias in node.names:
                deeper = f"{inside}.{alias.name}".lstrip(".")
                names.add(deeper if deeper in ROWS else inside)
        if isinstance(node, ast.Import):
            names |= {a.name.removeprefix("sparring.") for a in node.names if a.name.split(".")[0] == "sparring"}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: relative import"
    return names


def test_every_module_has_a_row() -> None:
    assert set(modules()) == set(ROWS)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_downward(name: str) -> None:
    for target in imported(modules()[name]):
        assert ROWS[target] < ROWS[name], (
            f"{name or 'sparring'} (row {ROWS[name]}) imports {target} (row {ROWS[target]})"
        )


def test_objectives_import_only_torch() -> None:
    for name in ("objectives.pairwise", "objectives.sft"):
        tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                assert node.module.split(".")[0] in ("__future__", "collections", "torch")


def test_selfplay_is_short() -> None:
    assert len((SOURCE / "selfplay.py").read_text(encoding="utf-8").splitlines()) < 200
