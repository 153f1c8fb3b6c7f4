"""What a reward run says of itself: a headline, a table beside chance and length, warnings. Read from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparring.errors import RunError
from sparring.report.records import Row, Run, number, pretty
from sparring.report.tables import MISSING, fixed, interval, percent, phase_label

SCORES = "reward-scores/scores.json"
LENGTHY = 0.5  # a correlation with length that is worth a warning
SURER = 0.005  # nats above the log loss of no idea, from which on it is said
FEW = 100  # held-out pairs below which an interval is wide


def read_scores(folder: Path) -> Row:
    """What the held-out pairs said; empty before they were scored. RunError for a damaged file."""
    path = folder / SCORES
    if not path.exists():
        return {}
    try:
        found: Row = json.loads(path.read_text(encoding="utf-8"))
        return found
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); remove {path.parent} and run again") from None


def headline(scores: Row) -> str:
    """One sentence: how often the reward model is right, and whether that is more than length alone gives."""
    if not scores:
        return "Not finished: the held-out pairs have not been scored yet."
    accuracy, over = scores["accuracy"], scores["over_length"]
    said = f"The reward model prefers the chosen answer in {_share(accuracy)} of {scores['n']} held-out pairs"
    rule = f"“the {scores['length_rule']} answer wins” ({percent(_rule(scores))})"
    if over["low"] is None:
        return f"{said}; that is too few for an interval."
    if accuracy["low"] <= 0.5:
        return f"{said}: {'less' if accuracy['high'] < 0.5 else 'not certainly more'} than chance."
    if over["low"] > 0:
        return f"{said}: more than chance, and more than {rule}."
    return f"{said}: more than chance, but not certainly more than {rule}."


def reward_rows(scores: Row) -> tuple[list[str], list[list[str]]]:
    """The table: what is measured, its value with its 95 % interval, what it means."""
    header = ["measure", "held out [95 %]", "meaning"]
    if not scores:
        return header, []
    calibration, agreed = scores["calibration"], scores["people"]
    rows = [
        ["accuracy", _share(scores["accuracy"]), "the chosen answer has the higher reward; a tie counts ½"],
        ["chance", percent(0.5), "no idea"],
        ["longer answer", _share(scores["longer"]), "the longer answer wins, in tokens"],
        ["over length", _points(scores["over_length"]), f"accuracy less that of “the {scores['length_rule']} wins”"],
    ]
    if agreed:
        several = f"{agreed['pairs']} pairs with several annotators"
        rows.append(["two annotators", percent(agreed["agree"]), f"agree with each other; {several}"])
        rows.append(["one annotator", percent(agreed["label"]), "agrees with the label, in which the vote counted"])
    rows += [
        ["calibration error", fixed(calibration["ece"], 3), "how far σ(difference) is from the share that is right"],
        [
            "log loss",
            fixed(calibration["log_loss"], 3),
            f"nats per pair; {fixed(calibration['no_idea'], 3)} is no idea",
        ],
        ["length correlation", _correlated(scores["length_correlation"]), "reward against tokens; Pearson, Spearman"],
        ["… of differences", _correlated(scores["gap_correlation"]), "within a pair"],
        ["margin", fixed(scores["margin"], 3, sign=True), "mean reward, chosen − rejected"],
        ["reward", _spread(scores), "mean and standard deviation of all answers"],
    ]
    return header, rows


def warnings_of_reward(run: Run, scores: Row) -> list[str]:
    """Every warning the run logged, then those the numbers give."""
    found = [f"{phase_label(phase)}: {said}" if phase else said for phase, said in run.warnings]
    return [pretty(line) for line in dict.fromkeys([*found, *(_warned(scores, run) if scores else [])])]


def _warned(scores: Row, run: Run) -> list[str]:
    accuracy, over, correlation = scores["accuracy"], scores["over_length"], scores["length_correlation"]["spearman"]
    found = []
    if scores["n"] < FEW:
        found.append(f"{scores['n']} held-out pairs are few: the intervals are wide; raise data.eval_size")
    if accuracy["low"] is not None and accuracy["low"] <= 0.5:
        found.append(
            f"The reward model is {'worse' if accuracy['high'] < 0.5 else 'not certainly better'} than chance "
            f"({_share(accuracy)}): what is chosen or trained by it is chosen by noise"
        )
    if over["low"] is not None and over["low"] <= 0:
        found.append(
            f"The reward model is {'worse' if over['high'] < 0 else 'not certainly better'} than "
            f"“the {scores['length_rule']} answer wins” ({_points(over)}): length alone tells as much"
        )
    if correlation is not None and abs(correlation) > LENGTHY:
        found.append(
            f"Rewards follow length (rank correlation {fixed(correlation, 2, sign=True)}): a policy trained by them "
            f"will write {'longer' if correlation > 0 else 'shorter'} answers"
        )
    if scores["calibration"]["log_loss"] > scores["calibration"]["no_idea"] + SURER:
        found.append(
            "The reward model is surer than it may be: its log loss is above that of no idea; train for fewer epochs, "
            "or set reward.label_smoothing"
        )
    agreed = scores["people"]
    if agreed and accuracy["low"] is not None and accuracy["low"] > agreed["label"]:
        found.append("The reward model agrees with the labels more than the annotators do: is a pair on both sides?")
    if learnt := _learnt(run):
        gap = learnt - accuracy["mean"]
        if gap > 0.15:
            found.append(
                f"Training accuracy at the end ({percent(learnt)}) is far above held-out accuracy "
                f"({percent(accuracy['mean'])}): it has learnt pairs by heart"
            )
    return found


def _learnt(run: Run) -> float | None:
    """Mean accuracy of the last tenth of the training steps, five at the least."""
    values = [value for row in run.steps.get("reward", []) if (value := number(row, "accuracy")) is not None]
    last = values[-max(5, len(values) // 10) :]
    return sum(last) / len(last) if last else None


def _rule(scores: Row) -> float:
    longer: float = scores["longer"]["mean"]
    return longer if scores["length_rule"] == "longer" else 1 - longer


def _share(found: Row) -> str:
    if found["low"] is None:
        return percent(found["mean"])
    return f"{percent(found['mean'])} [{fixed(100 * found['low'], 1)}, {fixed(100 * found['high'], 1)}]"


def _points(found: Row) -> str:
    """A difference of shares in points."""
    mean = f"{fixed(100 * found['mean'], 1, sign=True)} points"
    low, high = (None if found[key] is None else 100 * found[key] for key in ("low", "high"))
    return f"{mean} {interval(low, high, digits=1, sign=True)}".rstrip()


def _correlated(found: Row) -> str:
    parts = [found["pearson"], found["spearman"]]
    return ", ".join(MISSING if value is None else fixed(value, 2, sign=True) for value in parts)


def _spread(scores: dict[str, Any]) -> str:
    return f"{fixed(scores['reward_mean'], 2, sign=True)} ± {fixed(scores['reward_deviation'], 2)}"
