"""What a person sees while a run goes on: progress with time left, a line per phase and per player."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from sparring.run import Event

TITLES = {
    "data": "read the data",
    "sft": "fine-tune on the real answers (θ_0)",
    "played": "play: the opponent answers every prompt",
    "rewards": "reward: what each answer is worth",
    "scored": "score: log-probs of every token",
    "pairs": "score: log-probs under the opponent",
    "player": "learn: tell real answers from the opponent's",
    "preferred": "judge on held-out pairs",
    "scores": "judge on held-out prompts",
    "valued": "judge: what the scorer says of its answers",
    "kept": "keep the pairs whose real answer scores higher",
    "best": "choose the best player",
    "test": "measure on the test prompts",
    "start": "take on the player to start from",
    "reward": "learn which answers are preferred",
}

# Events that are said as they are.
SAID = {
    "warning": "  warning: {text}",
    "stop": "  stopped early at step {step}: {reason}",
    "rollback": "  {text}",
}

# What learning from rewards calls otherwise.
REWARDED = {"played": "play: a group of answers to each prompt", "player": "learn: from the rewards"}

# What phases are called where nobody plays.
PREFERENCES = {
    "sft": "fine-tune on the chosen answers (θ_0)",
    "pairs": "score: log-probs under the reference",
    "player": "learn: tell chosen answers from rejected ones",
}


def title(phase: str, other: Mapping[str, str] | None = None) -> str:
    """A phase in words: `0/played` → `iteration 0 · play: …`. other: titles that are not the usual ones."""
    titles = {**TITLES, **(other or {})}
    place, _, kind = phase.rpartition("/")
    if not place and phase.endswith(("-scores", "-valued")):
        place, _, kind = phase.partition("-")
        return f"{'θ_0' if place == 'sft' else place} · {titles[kind]}"
    if place and other is PREFERENCES:
        return f"θ_1 · {titles[kind]}"
    return f"iteration {place} · {titles[kind]}" if place else titles.get(kind, kind)


def clock(seconds: float) -> str:
    """Seconds as 4.2 s, 3:05 or 2:03:05."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class JsonLines:
    """Every event as a line of JSON on standard output, for machines."""

    def __call__(self, event: Event) -> None:
        print(json.dumps(event), flush=True)


class Plain:
    """Lines only: for logs and pipes. A long phase speaks about every 20 seconds."""

    interval = 20.0

    def __init__(self, titles: Mapping[str, str] | None = None) -> None:
        self._titles = titles
        self._phase, self._begun, self._spoken = "", 0.0, 0.0
        self._held: list[str] = []  # what a phase has to say, under its line

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "start":
            self._phase, self._begun, self._spoken = event["phase"], time.monotonic(), time.monotonic()
        elif kind in ("step", "progress"):
            self.progress(*_progress(event), event)
        elif kind == "phase":
            self.line(f"{title(event['phase'], self._titles)}  {clock(event['seconds'])}")
            for text in self._held:
                self.line(text)
            self._held = []
        elif kind == "reference":
            self._titles = PREFERENCES
            self.line(event["text"])
        elif text := _words(event):
            self._held.append(text)

    def progress(self, done: int, total: int, event: Event) -> None:
        """Say how far the phase is, if it was silent for a while."""
        now = time.monotonic()
        if now - self._spoken > self.interval and done < total:
            self._spoken = now
            left = (now - self._begun) / max(done, 1) * (total - done)
            self.line(
                f"  {title(self._phase, self._titles)}  {done}/{total}  about {clock(left)} left{_numbers(event)}"
            )

    def line(self, text: str) -> None:
        """One line of output."""
        print(text, flush=True)


class Bars(Plain):
    """A live bar for the phase in progress, and the same lines above it."""

    def __init__(self, titles: Mapping[str, str] | None = None) -> None:
        super().__init__(titles)
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self._bars = Progress(*columns, transient=True)
        self._task: Any = None

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        if event["event"] == "start":
            self._drop()
        super().__call__(event)
        if event["event"] == "phase":
            self._drop()

    def _drop(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

    def progress(self, done: int, total: int, event: Event) -> None:
        """Move the bar."""
        if self._task is None:
            name = title(self._phase, self._titles).split(":")[0]  # the rest is for the line
            self._task = self._bars.add_task(name, total=total, completed=done, numbers="")
        self._bars.update(self._task, completed=done, total=total, numbers=_numbers(event))

    def line(self, text: str) -> None:
        """One line above the bar."""
        self._bars.console.print(text, markup=False, highlight=False)


def listener(as_json: bool, titles: Mapping[str, str] | None = None) -> Any:
    """The listener that fits where standard output goes."""
    if as_json:
        return JsonLines()
    return Bars(titles) if sys.stdout.isatty() else Plain(titles)


def _progress(event: Event) -> tuple[int, int]:
    return (event["step"], event["steps"]) if event["event"] == "step" else (event["done"], event["total"])


def _numbers(event: Event) -> str:
    if event["event"] != "step":
        return ""
    if "accuracy" in event:
        return f"  loss {event['loss']:.4f}  margin {event['margin']:+.3f}  accuracy {event['accuracy']:.2f}"
    if "kl" in event:
        return f"  loss {event['loss']:+.4f}  KL {event['kl']:.3f}"
    return f"  NLL {event['nll']:.4f}"


def _valued(event: Event) -> str:
    """What a scorer, or people's pairs, say of a player."""
    if event["event"] == "reward":
        return f"  held-out reward {event['reward']:.4f} ({event['scorer']}; real answers {event['real_reward']:.4f})"
    low = event["preference_low"]
    between = "" if low is None else " [{preference_low:.1%}, {preference_high:.1%}]".format(**event)
    moved = "chosen {chosen_shift:+.2f}, rejected {rejected_shift:+.2f} nats per answer".format(**event)
    return f"  held-out preference accuracy {event['preference']:.1%}{between} of {event['n']} pairs · {moved}"


def _words(event: Event) -> str:
    kind = event["event"]
    if kind in SAID:
        return SAID[kind].format(**event)
    if kind in ("reward", "preferred"):
        return _valued(event)
    if kind not in ("scores", "test"):
        return ""
    parts = [f"  {event['label']}: {event['n']} {'test' if kind == 'test' else 'held-out'} prompts"]
    if event["nll"] is not None:
        parts = [f"  {event['label']}: {'test' if kind == 'test' else 'held-out'} NLL {event['nll']:.4f} per token"]
    gap = event.get("nll_difference")
    if gap:
        parts.append(f"{gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}] against SFT")
    if event.get("accuracy") is not None:
        parts.append(f"accuracy {event['accuracy']:.2f}")
    if event.get("match") is not None:
        parts.append(f"match {event['match']:.1%}")
    real = f" (real: {event['real_length']:.0f})" if "real_length" in event else ""
    parts.append(f"{event['length']:.0f} tokens, {event['end_rate']:.0%} ended{real}")
    if event.get("exact"):
        parts.append(f"exact KL {event['exact']['kl']:.3f}, valid {event['exact']['valid_mass']:.2f}")
    return " · ".join(parts)
