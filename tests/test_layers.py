"""Imports go downward: each module has a row, and imports only from lower rows (or, in report/, its own order)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sparring"

ROWS = {
    "data": 0,
    "data.packing": 0,
    "errors": 0,
    "evaluation": 0,
    "evaluation.answers": 0,
    "evaluation.calibration": 0,
    "evaluation.extract": 0,
    "evaluation.metrics": 0,
    "evaluation.prompting": 0,
    "evaluation.statistics": 0,
    "export": 0,
    "generation": 0,
    "generation.sampling": 0,
    "laboratory": 0,
    "laboratory.tokenizer": 0,
    "machine": 0,
    "models": 0,
    "models.bottleneck": 0,
    "models.head": 0,
    "models.keys": 0,
    "models.loraplus": 0,
    "models.merged": 0,
    "models.pissa": 0,
    "objectives": 0,
    "objectives.pairwise": 0,
    "objectives.policy_gradient": 0,
    "objectives.reward": 0,
    "objectives.sft": 0,
    "peak": 0,
    "report": 0,
    "report.frame": 0,
    "report.svg": 0,
    "rewards": 0,
    "schedule": 0,
    "section": 0,
    "terminal": 0,
    "watch": 0,
    "callbacks": 1,
    "config_compare": 1,
    "config_dpo": 1,
    "config_evaluation": 1,
    "config_inputs": 1,
    "config_reinforce": 1,
    "config_reward": 1,
    "config_sft": 1,
    "crew": 1,
    "data.collate": 1,
    "data.messages": 1,
    "evaluation.endpoint": 1,
    "evaluation.paired": 1,
    "export.engines": 1,
    "export.push": 1,
    "files": 1,
    "generation.base": 1,
    "generation.cache": 1,
    "imported": 1,
    "laboratory.bandit": 1,
    "laboratory.grammar": 1,
    "laboratory.world": 1,
    "methods.method": 1,
    "models.attention": 1,
    "models.virtual": 1,
    "names": 1,
    "report.lab_plots": 1,
    "report.records": 1,
    "rewards.scorer": 1,
    "rewards.settings": 1,
    "serve_guard": 1,
    "costs": 2,
    "data.pairs": 2,
    "data.values": 2,
    "evaluation.harness": 2,
    "evaluation.judges": 2,
    "evaluation.prompting.styles": 2,
    "evaluation.verdicts": 2,
    "export.card_facts": 2,
    "export.card_origin": 2,
    "export.gguf_tokenizer": 2,
    "export.places": 2,
    "folder": 2,
    "laboratory.bandit_laws": 2,
    "laboratory.exact": 2,
    "laboratory.planted": 2,
    "methods.bottleneck": 2,
    "methods.full": 2,
    "methods.ia3": 2,
    "methods.lora": 2,
    "methods.virtual": 2,
    "models.flops": 2,
    "models.forward": 2,
    "report.duels": 2,
    "report.lab_faults": 2,
    "report.study": 2,
    "report.tables": 2,
    "rewards.text": 2,
    "scaling": 2,
    "data.sources": 3,
    "export.gguf_texts": 3,
    "export.ollama": 3,
    "laboratory.pretrain": 3,
    "ledger": 3,
    "methods": 3,
    "models.layout": 3,
    "report.lab_page": 3,
    "report.plot_players": 3,
    "report.plot_reward": 3,
    "report.plot_steps": 3,
    "report.plot_tuning": 3,
    "report.preferred": 3,
    "report.quantised": 3,
    "report.reward": 3,
    "report.sheets": 3,
    "report.tested": 3,
    "rewards.rank": 3,
    "run": 3,
    "testrows": 3,
    "config": 4,
    "console": 4,
    "export.card_use": 4,
    "export.targets": 4,
    "laboratory.tiny": 4,
    "models.adapters": 4,
    "report.best_of": 4,
    "report.rewarded": 4,
    "report.study_costs": 4,
    "report.study_plots": 4,
    "report.study_tables": 4,
    "support": 4,
    "adapter_fits": 5,
    "adapter_words": 5,
    "arms": 5,
    "configfile": 5,
    "data.formats": 5,
    "models.quantised": 5,
    "report.findings": 5,
    "report.plots": 5,
    "verbs": 5,
    "axis": 6,
    "data.comparisons": 6,
    "models.base": 6,
    "report.markdown": 6,
    "wording": 6,
    "data.load": 7,
    "evaluation.people": 7,
    "export.bare": 7,
    "export.card": 7,
    "export.compared": 7,
    "export.gguf_family": 7,
    "generation.local": 7,
    "models.scoring": 7,
    "models.whole": 7,
    "report.page": 7,
    "report.study_page": 7,
    "saving": 7,
    "data.prepare": 8,
    "data.selfplayed": 8,
    "evaluation.nll": 8,
    "evaluation.rewarded_pairs": 8,
    "evaluation.trusted": 8,
    "export.gguf": 8,
    "export.gguf_check": 8,
    "models.memory": 8,
    "models.player": 8,
    "models.reward_head": 8,
    "report.reward_page": 8,
    "tasks": 8,
    "adapter_found": 9,
    "data.preferences": 9,
    "models.players": 9,
    "policy_task": 9,
    "reward_task": 9,
    "start": 9,
    "adapter_look": 10,
    "arguments": 10,
    "evaluation.mt_bench": 10,
    "models.adopt": 10,
    "models.trained": 10,
    "rewards.implicit": 10,
    "rewards.model": 10,
    "session": 10,
    "allowance": 11,
    "evaluation.choose": 11,
    "evaluation.prompting.sheet": 11,
    "evaluation.quantisation": 11,
    "generation.play": 11,
    "lesson": 11,
    "preparing": 11,
    "rewards.build": 11,
    "trainer": 11,
    "best_of": 12,
    "evaluation.asking": 12,
    "evaluation.rewarded": 12,
    "opponent": 12,
    "studied": 12,
    "evaluation.judge": 13,
    "reference": 13,
    "rewarding": 13,
    "evaluation.chosen": 14,
    "evaluation.preferred": 14,
    "evaluation.valued": 14,
    "evaluation.examine": 15,
    "scoring": 15,
    "stopping": 15,
    "watching": 15,
    "learning": 16,
    "controls": 17,
    "dpo": 17,
    "improving": 17,
    "reward": 17,
    "reinforce": 18,
    "selfplay": 18,
    "kinds": 19,
    "laboratory.faults": 19,
    "job": 20,
    "browse": 21,
    "cli_runs": 21,
    "laboratory.trials": 21,
    "plan": 21,
    "workers": 21,
    "adapter_check": 22,
    "chat": 22,
    "cli_dpo": 22,
    "cli_reinforce": 22,
    "export.source": 22,
    "laboratory.tour": 22,
    "rewards.scored": 22,
    "study": 22,
    "chat_terminal": 23,
    "cli_lab": 23,
    "cli_reward": 23,
    "export.merged": 23,
    "importing": 23,
    "measuring": 23,
    "cli_evaluate": 24,
    "cli_import": 24,
    "export.adapter": 24,
    "cli_chat": 25,
    "export.gguf_adapter": 25,
    "export.exporting": 26,
    "serve_models": 26,
    "cli_export": 27,
    "serve_engines": 27,
    "serve": 28,
    "cli_serve": 29,
    "cli": 30,
    "": 31,  # the package's own front door
    "__main__": 31,
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
    for name in ("objectives.pairwise", "objectives.policy_gradient", "objectives.reward", "objectives.sft"):
        tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                assert node.module.split(".")[0] in ("__future__", "collections", "torch")


def test_selfplay_is_short() -> None:
    assert len((SOURCE / "selfplay.py").read_text(encoding="utf-8").splitlines()) < 200
