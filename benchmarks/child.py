"""One contestant in a process of its own: `python -m benchmarks.child FOLDER NAME`; its last line is JSON.

NAME  prepare, a, b, ours, or ours_b: ours with the pairs in B's order
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.settings import Settings


def main() -> None:
    """Do one contestant's work and print what it cost."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    settings = Settings.read(folder)
    torch.set_num_threads(settings.threads)
    disable_progress_bar()
    print("\n" + json.dumps(_result(folder, name, settings)), flush=True)


def _result(folder: Path, name: str, settings: Settings) -> dict[str, Any]:
    if name == "prepare":
        from benchmarks.material import prepare

        return prepare(folder, settings)
    if settings.work == "reinforce":
        from benchmarks import policy

        return policy.ours(folder, settings) if name == "ours" else policy.theirs(folder, settings, tuned=name == "b")
    if name in ("a", "b"):
        from benchmarks import rivals

        return rivals.contest(folder, settings, tuned=name == "b")
    from benchmarks import ours

    return ours.contest(folder, settings, grouped=name == "ours_b")


if __name__ == "__main__":
    main()
