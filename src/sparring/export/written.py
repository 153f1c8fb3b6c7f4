"""What came of an export: for the terminal in a table and in sentences, for machines in events."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.export.compared import ENGINES, Compared
from sparring.export.compared import TOLERANCE as NEAR
from sparring.export.gguf_check import TOLERANCE, Checked


@dataclass
class Written:
    """What came of an export.

    compared  adapter and merged, held against the run; checked: GGUF files by name, held against the merged model
    said      what the reader should know besides
    address   where it was uploaded; empty: nowhere
    """

    out: Path
    folders: list[Path] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    checked: dict[str, Checked] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    address: str = ""

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(header, rows) for the terminal: on held-out answers, how far each is from what it was made from."""
        header = ["", "size", "answers", "NLL per token", "off by", "allowed", "any token"]
        rows = []
        for found in self.compared:
            rows.append([
                found.what, _size(found.out), str(found.answers), f"{found.nll(2):.6f}", f"{found.off:+.2g}",
                f"{NEAR[found.dtype]:g}", f"{found.largest(2):.2g}",
            ])  # fmt: skip
        for name, checked in self.checked.items():
            rows.append([
                name, _size(self._file(name)), str(checked.rows), f"{checked.file:.6f}",
                f"{checked.file - checked.model:+.2g}", f"{TOLERANCE[checked.kind]:g}", f"{checked.largest:.2g}",
            ])  # fmt: skip
        return header, rows

    def _file(self, name: str) -> Path:
        return next(folder / name for folder in self.folders if (folder / name).exists())

    def lines(self) -> list[str]:
        """What came of it, in sentences."""
        said = []
        for found in self.compared:
            against = f"against {found.labels[1]}, loaded by {ENGINES[found.what]} alone"
            said.append(f"{found.what}: {against}; the same tokens of texts and chats{found.rounded()}")
            said += found.text().splitlines()[1:]
        for name, checked in self.checked.items():
            odd = f"; {checked.odd()}" if checked.odd() else ""
            said.append(f"{name}: against the merged model, loaded by llama.cpp; the same: {checked.same()}{odd}")
        said += [f"note: {line}" for line in self.said]
        said += [f"written: {folder}, with a model card (README.md)" for folder in self.folders]
        return said + ([f"uploaded: {self.address}"] if self.address else [])

    def facts(self) -> list[dict[str, Any]]:
        """For machines, an event for each form."""
        events = [found.facts() for found in self.compared]
        events += [{**checked.facts(), "file": name} for name, checked in self.checked.items()]
        done = {"event": "exported", "folders": [str(folder) for folder in self.folders], "said": self.said}
        return [*events, {**done, "address": self.address or None}]


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = float(sum(os.path.getsize(file) for file in files))
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
