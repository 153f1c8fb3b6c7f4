"""Tasks of the lm-evaluation-harness (EleutherAI) on a seated player: base and adapter as they are, nothing merged."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.errors import InputError, nearest
from sparring.files import write_atomic

# The Open LLM Leaderboard's tasks, in the names and with the shots of the SPIN paper (section 6.1).
SPIN: dict[str, int | None] = {
    "arc_challenge": 25,
    "truthfulqa_mc2": 0,
    "winogrande": 5,
    "gsm8k": 5,
    "hellaswag": 10,
    "mmlu": 5,
}


def need_harness() -> None:
    """Raise InputError, before anything is loaded, if lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            "lm-eval is not installed; install it with pip install 'sparring[eval]' or pip install lm-eval"
        )


def tasks_of(text: str, shots: int | None) -> dict[str, int | None]:
    """Task → shots (None: the task's own) of a list like `spin,piqa`. InputError if it names none."""
    found: dict[str, int | None] = {}
    for name in (part.strip() for part in text.split(",")):
        found |= SPIN if name == "spin" else {name: shots} if name else {}
    if not found:
        raise InputError("no task is named; give some with --tasks, as in --tasks spin or --tasks arc_easy,piqa")
    return found


def bench(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, int | None],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    context: int | None = None,
) -> dict[str, Any]:
    """Results of the harness by task: its metrics, their standard errors, how many examples, with how many shots.

    model         a causal language model, with its adapter if it has one
    include_path  a folder with task files of one's own (YAML); their data may be local files
    limit         examples per task, for a trial

    Raises InputError for a task that the harness does not know, or whose data cannot be had.
    """
    need_harness()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = next((name for name in tasks if name not in manager.all_tasks), None)
    if unknown:
        raise InputError(f'task "{unknown}" is not known to the harness; {_near(unknown, manager.all_tasks)}')
    language_model = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, max_length=context
    )
    results: dict[str, Any] = {}
    for name, shots in tasks.items():
        try:
            found = simple_evaluate(
                language_model, tasks=[name], num_fewshot=shots, limit=limit, task_manager=manager,
                log_samples=False, bootstrap_iters=1000,
            )  # fmt: skip
        except (
            OSError,
            ValueError,
            RuntimeError,
            ImportError,
        ) as error:  # mostly data that are not here, and no way to the hub
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"task {name} cannot be done ({said}); its data come from the hub unless its file names local ones"
            ) from error
        for task, numbers in found["results"].items():
            results[task] = {
                "metrics": {key: value for key, value in numbers.items() if isinstance(value, float)},
                "n": found.get("n-samples", {}).get(task, {}).get("effective"),
                "shots": found.get("n-shot", {}).get(task),
                "version": found.get("versions", {}).get(task),
            }
    return results


def _near(name: str, known: Sequence[str]) -> str:
    """The nearest name alone: the harness knows thousands."""
    hint = nearest(name, known).split(" (known:")[0]
    return hint if hint.startswith("did") else "lm-eval ls tasks lists those it knows"


def save_results(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Write results to `folder`, under the first free number; nothing is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (path := folder / f"{name}-{number}.json").exists():
        number += 1
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


def rows_of(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for the terminal: one row per metric."""
    rows = []
    for task, about in results.items():
        for key, value in about["metrics"].items():
            metric, _, filtered = key.partition(",")
            if metric.endswith("_stderr"):
                continue
            error = about["metrics"].get(f"{metric}_stderr,{filtered}")
            between = "" if error is None else f"± {1.96 * error:.4f}"
            label = metric if filtered in ("", "none") else f"{metric} ({filtered})"
            rows.append([task, label, f"{value:.4f}", between, str(about["n"] or ""), str(about["shots"] or 0)])
    return ["task", "metric", "value", "95 %", "n", "shots"], rows
