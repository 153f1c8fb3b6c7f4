"""What a run folder says, read leniently: any file may be missing, and the last line may be cut.

A run that was killed and resumed may have logged a step twice; the later line counts. Nothing here
loads torch, a model or the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sparring.errors import RunError

Row = dict[str, Any]

ANSWER_FILES = {"base": "base-scores/answers.jsonl", "sft": "sft-scores/answers.jsonl"}
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_CONTROLS = (*range(32), *range(127, 160), 0x202D, 0x202E)  # the last two turn the order of what follows
_DROPPED = {code: "\N{REPLACEMENT CHARACTER}" for code in _CONTROLS if chr(code) not in "\n\t"} | {13: None}


@dataclass(frozen=True)
class Answers:
    """One held-out prompt, its real answer, what each player said: player → (text, finish), and its margin.

    margins  above 0 where a player tells the real answer from its opponent's; missing where it was not measured
    """

    prompt: str
    real: str
    said: dict[str, tuple[str, str]]
    margins: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run folder's records: `steps` and `checks` by phase, `phases` and `scores` in the run's order.

    tests  what the test split said, by "best" and "last"
    quantisation  what quantising the base cost; empty if it is not quantised
    best_of  quality against n of the test's answers, by "best" and "last", from n = 1 up
    preferred  what held-out pairs said of the player; empty but in a run of `sparring dpo`
    """

    folder: Path
    lock: Row = field(default_factory=dict)
    best: Row | None = None
    steps: dict[str, list[Row]] = field(default_factory=dict)
    checks: dict[str, list[Row]] = field(default_factory=dict)
    phases: dict[str, Row] = field(default_factory=dict)
    scores: dict[str, Row] = field(default_factory=dict)
    tests: dict[str, Row] = field(default_factory=dict)
    quantisation: Row = field(default_factory=dict)
    preferred: Row = field(default_factory=dict)
    best_of: dict[str, list[Row]] = field(default_factory=dict)
    warnings: tuple[tuple[str, str], ...] = ()
    unreadable: int = 0

    @property
    def name(self) -> str:
        return text(self.lock.get("name") or self.folder.resolve().name)

    @property
    def config(self) -> Row:
        """The resolved config, empty when it is unknown."""
        found = self.lock.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def start(self) -> str:
        """The player that is θ_0: `sft`, or `base` when fine-tuning is off."""
        if "sft" in self.scores or "sft" in self.steps:
            return "sft"
        return "base" if "base" in self.scores or self.setting("sft", "epochs") == 0 else "sft"

    @property
    def rewarded(self) -> bool:
        """Whether it learns from rewards, and not by self-play."""
        return isinstance(self.config.get("reinforce"), dict)

    @property
    def scored(self) -> bool:
        """Whether a scorer judged the players."""
        return any(number(row, "reward") is not None for row in self.scores.values())

    @property
    def prefers(self) -> bool:
        """Whether it learnt from pairs of a chosen and a rejected answer: nobody played."""
        return isinstance(self.config.get("dpo"), dict)

    @property
    def finished(self) -> bool:
        return self.best is not None

    @property
    def iterations(self) -> list[int]:
        """Every iteration that has logged a step, a phase or scores."""
        seen = [key.split("/")[0] for key in (*self.steps, *self.phases, *self.scores)]
        return sorted({int(key) for key in seen if key.isdecimal()})

    def setting(self, section: str, key: str) -> Any:
        """A value of the resolved config, or None."""
        part = self.config.get(section)
        return part.get(key) if isinstance(part, dict) else None

    def label(self, player: str) -> str:
        """A player's name as it is shown: "base", "θ₀ (SFT)", "θ₁"."""
        default = {"base": "base", "sft": "θ_0 (SFT)"}.get(player)
        if default is None:
            default = f"θ_{int(player) + 1}" if player.isdecimal() else player
        return pretty(text(self.scores.get(player, {}).get("label") or default))

    def opponent(self, player: str) -> str | None:
        """Who generated the synthetic answers that `player` was trained on; None before self-play."""
        if not player.isdecimal() or self.rewarded:
            return None
        return self.start if player == "0" else str(int(player) - 1)


def read_run(folder: Path) -> Run:
    """Read a run folder; RunError if it is no folder or a file in it is damaged."""
    if not folder.is_dir():
        raise RunError(f"run folder {folder} does not exist; give the folder that holds run.lock.yaml")
    lock = _lock(folder / "run.lock.yaml")
    best = _best(folder / "best" / "best.json")
    steps: dict[str, dict[Any, Row]] = {}
    checks: dict[str, dict[Any, Row]] = {}
    phases: dict[str, Row] = {}
    scores: dict[str, Row] = {}
    tests: dict[str, Row] = {}
    costs: dict[str, Row] = {}
    rewards: dict[str, Row] = {}
    prefers: dict[str, Row] = {}
    curves: dict[str, dict[float, Row]] = {}
    named = {"scores": (scores, "player"), "test": (tests, "which"), "quantisation": (costs, "event")}
    named |= {"reward": (rewards, "player"), "preferred": (prefers, "player")}
    warnings: dict[tuple[str, str], None] = {}
    unreadable = 0
    for row in read_lines(folder / "metrics.jsonl"):
        event, phase = row.get("event"), str(row.get("phase") or "")
        if event == "step":
            steps.setdefault(phase, {})[row.get("step")] = row
        elif event == "check":
            checks.setdefault(phase, {})[row.get("step")] = row
        elif event == "phase":
            phases[phase] = row
        elif event == "best_of":
            curves.setdefault(text(row.get("which")), {})[number(row, "n") or 0.0] = row
        elif event in named:
            rows, key = named[event]
            rows[text(row.get(key))] = row
        elif event == "warning":
            warnings[text(phase), text(row.get("text"))] = None
        elif event is None:
            unreadable += 1
    _beside(scores, rewards, prefers)
    return Run(
        folder=folder,
        lock=lock,
        best=best,
        steps={phase: _by_step(rows) for phase, rows in steps.items()},
        checks={phase: _by_step(rows) for phase, rows in checks.items()},
        phases=phases,
        scores=dict(sorted(scores.items(), key=lambda item: player_order(item[0]))),
        tests=dict(sorted(tests.items())),
        quantisation=costs.get("quantisation", {}),
        preferred=prefers.get("0", {}),
        best_of={which: [rows[n] for n in sorted(rows)] for which, rows in sorted(curves.items())},
        warnings=tuple(warnings),
        unreadable=unreadable,
    )


def _beside(scores: dict[str, Row], rewards: dict[str, Row], prefers: dict[str, Row]) -> None:
    """Put what rewards and pairs say of a player into the line of its scores."""
    for player, row in rewards.items():
        scores[player] = {**row, **scores.get(player, {})}
    for player, row in prefers.items():
        known = {key: value for key, value in row.items() if key.startswith("preference")}
        scores[player] = scores.get(player, {}) | known


def shown(run: Run) -> int:
    """How many prompts are shown side by side: config `evaluation.show`, six by default."""
    wanted = run.setting("evaluation", "show")
    return wanted if isinstance(wanted, int) else 6


def read_answers(run: Run, limit: int | None = None) -> list[Answers]:
    """The first prompts (as many as `shown` says) with every player's answer to each."""
    limit = shown(run) if limit is None else limit
    players = [run.start, *(str(t) for t in run.iterations)]
    files = {player: ANSWER_FILES.get(player, f"{player}/scores/answers.jsonl") for player in players}
    found: dict[int, Answers] = {}
    prompts: set[str] = set()
    for player, name in files.items():
        for index, row in enumerate(read_lines(run.folder / name)):
            if "prompt" not in row:
                continue
            prompt = text(row["prompt"])
            if index not in found and prompt not in prompts and len(found) < limit:
                found[index] = Answers(prompt, text(row.get("real")), {})
                prompts.add(prompt)
            if index in found and found[index].prompt == prompt:
                found[index].said[player] = (text(row.get("answer")), str(row.get("finish")))
                if (margin := number(row, "margin")) is not None:
                    found[index].margins[player] = margin
            if len(found) >= limit and index >= max(found, default=0):
                break
    return [found[index] for index in sorted(found)]


def number(row: Row, key: str) -> float | None:
    """A finite number, or None for a missing, null, NaN or other value."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def prompts(row: Row) -> float | None:
    """How many prompts an interval is over; rows to one prompt are one."""
    return number(row, "prompts") or number(row, "n")


def difference(row: Row) -> tuple[float, float, float] | None:
    """(mean, low, high) of the paired NLL difference to the SFT player, if it was measured."""
    found = row.get("nll_difference")
    if not isinstance(found, dict):
        return None
    mean, low, high = (number(found, key) for key in ("mean", "low", "high"))
    return None if mean is None or low is None or high is None else (mean, low, high)


def exact(row: Row) -> Row:
    """The laboratory's exact measures of a player, empty elsewhere."""
    found = row.get("exact")
    return found if isinstance(found, dict) else {}


def player_order(player: str) -> tuple[int, str]:
    """Sort key: base, sft, then the iterations by number."""
    if player.isdecimal():
        return 2 + int(player), ""
    return {"base": 0, "sft": 1}.get(player, 10**9), player


def pretty(label: str) -> str:
    """θ_12 → θ₁₂."""
    head, *parts = label.split("θ_")
    for part in parts:
        digits = len(part) - len(part.lstrip("0123456789"))
        head += "θ" + (part[:digits].translate(_SUBSCRIPTS) if digits else "_") + part[digits:]
    return head


def text(value: object) -> str:
    """Text that any file can hold: control characters and lone surrogates replaced."""
    plain = "" if value is None else str(value)
    return plain.encode("utf-8", "replace").decode("utf-8").translate(_DROPPED)


def read_lines(file: Path) -> Iterator[Row]:
    """The objects of a JSON-lines file; an unreadable line gives {}, a cut last line nothing."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                if line.endswith("\n"):
                    yield {}
                continue
            yield row if isinstance(row, dict) else {}


def _lock(file: Path) -> Row:
    if not file.is_file():
        return {}
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{file} is not YAML, so the run's config is unknown; restore it") from error
    return tree if isinstance(tree, dict) else {}


def _best(file: Path) -> Row | None:
    if not file.is_file():
        return None
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file} is not JSON; delete it and let the run choose its best player again") from error
    return tree if isinstance(tree, dict) else None


def _by_step(rows: dict[Any, Row]) -> list[Row]:
    return sorted(rows.values(), key=lambda row: number(row, "step") or 0.0)
