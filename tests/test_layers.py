"""Imports go downward: each module has a row, and imports only from lower rows (or, in report/, its own order)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sparring"

ROWS = {
    "errors": 0,
    "config": 1,
    "configfile": 3,
    "files": 1,
    "watch": 0,
    "crew": 1,
    "folder": 3,
    "machine": 1,
    "run": 7,
    "laboratory": 1,  # the roof: two paths
    "laboratory.world": 1,
    "laboratory.tokenizer": 3,
    "objectives.pairwise": 1,
    "objectives.sft": 1,
    "objectives": 3,
    "generation.sampling": 1,
    "generation.base": 3,
    "data": 0,
    "data.messages": 1,
    "data.formats": 3,
    "data.pairs": 3,
    "data.packing": 1,
    "data.collate": 2,
    "data.sources": 7,
    "data.load": 8,
    "data.prepare": 9,
    "models": 0,
    "models.head": 1,
    "models.attention": 3,
    "models.forward": 4,
    "models.layout": 5,
    "models.memory": 8,
    "models.quantised": 5,
    "models.base": 6,
    "models.methods": 6,
    "models.flops": 6,
    "models.players": 7,
    "models.scoring": 7,
    "generation": 0,
    "generation.cache": 1,
    "generation.local": 8,
    "laboratory.exact": 3,
    "laboratory.pretrain": 9,
    "laboratory.bandit": 2,
    "laboratory.bandit_laws": 3,
    "laboratory.grammar": 4,
    "laboratory.tiny": 10,
    "laboratory.faults": 16,
    "laboratory.trials": 17,
    "laboratory.tour": 18,
    "tasks": 9,
    "evaluation": 0,
    "evaluation.answers": 1,
    "evaluation.metrics": 1,
    "evaluation.statistics": 1,
    "evaluation.paired": 3,
    "evaluation.verdicts": 4,
    "evaluation.nll": 9,
    "evaluation.quantisation": 11,
    "schedule": 1,
    "scaling": 3,
    "saving": 8,
    "callbacks": 1,
    "arguments": 8,
    "trainer": 10,
    "session": 10,
    "preparing": 11,
    "generation.play": 11,
    "evaluation.choose": 11,
    "evaluation.extract": 0,
    "evaluation.endpoint": 1,
    "evaluation.judges": 2,
    "evaluation.harness": 2,
    "evaluation.mt_bench": 9,
    "evaluation.calibration": 1,
    "evaluation.prompting": 0,
    "evaluation.prompting.styles": 2,
    "evaluation.prompting.sheet": 11,
    "evaluation.asking": 12,
    "evaluation.judge": 13,
    "evaluation.examine": 14,
    "allowance": 11,
    "learning": 12,
    "opponent": 12,
    "controls": 14,
    "selfplay": 15,
    "report": 0,
    "report.records": 1,
    "report.tables": 3,
    "report.tested": 4,
    "report.quantised": 4,
    "report.findings": 7,
    "report.frame": 1,
    "report.duels": 7,
    "report.sheets": 7,
    "report.svg": 7,
    "report.markdown": 8,
    "report.plot_steps": 8,
    "report.plot_players": 8,
    "report.plots": 9,
    "report.page": 10,
    "report.lab_plots": 8,
    "report.lab_faults": 9,
    "report.lab_page": 10,
    "report.study": 4,
    "report.study_tables": 8,
    "report.study_plots": 8,
    "report.study_page": 10,
    "console": 8,
    "terminal": 0,
    "job": 16,
    "plan": 17,
    "arms": 4,
    "testrows": 4,
    "studied": 17,
    "workers": 17,
    "ledger": 7,
    "study": 18,
    "browse": 17,
    "measuring": 18,
    "cli_evaluate": 19,
    "cli_export": 20,
    "export": 0,
    "export.merged": 18,
    "cli_lab": 19,
    "cli": 21,
    "__main__": 22,
    "": 22,  # the package's own front door
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
