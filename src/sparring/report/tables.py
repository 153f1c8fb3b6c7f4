"""The result table, the budget table, and how a number is written in each.

A column is one line of `COLUMNS`; the page, report.md, the terminal and the tests read the same cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sparring.report.records import Row, Run, difference, exact, number, read_run, text

MISSING = "–"
KINDS = {  # the last part of a phase's name: what was done in it
    "data": "data",
    "quantisation": "judging",
    "base-scores": "judging",
    "sft-scores": "judging",
    "scores": "judging",
    "base-valued": "judging",
    "sft-valued": "judging",
    "valued": "judging",
    "kept": "scoring",
    "sft": "learning",
    "player": "learning",
    "played": "generation",
    "pairs": "scoring",
    "rewards": "scoring",
    "scored": "scoring",
    "preferred": "judging",
    "reward": "learning",
    "reward-scores": "judging",
}


@dataclass(frozen=True)
class Cell:
    """A figure and, where there is one, its 95 % interval."""

    figure: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.figure} {self.interval}".rstrip()


@dataclass(frozen=True)
class Column:
    """One measure: its heading, its meaning, a player's cell, and the key that holds it for real answers."""

    heading: str
    meaning: str
    cell: Callable[[Row], Cell]
    real: str | None = None
    exact: bool = False
    compact: bool = True
    optional: bool = False  # shown if a player has the number


@dataclass(frozen=True)
class Line:
    """One row of the result table. `player` is None for the real answers, `note` is small print."""

    player: str | None
    label: str
    cells: tuple[Cell, ...]
    best: bool = False
    note: str = ""


# ---------------------------------------------------------------- numbers as text


def fixed(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A number with a true minus sign; "–" when there is none."""
    if value is None:
        return MISSING
    written = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(written) == 0:
        written = written.lstrip("+-")
    return written.replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 4, sign: bool = False) -> str:
    if low is None or high is None:
        return ""
    return f"[{fixed(low, digits, sign)}, {fixed(high, digits, sign)}]"


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{fixed(100 * value, 1)} %"


def count(value: float | None) -> str:
    """Tokens and FLOPs: exact below a million, then with a unit."""
    if value is None:
        return MISSING
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:,.0f}".replace(",", " ")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


# ---------------------------------------------------------------- the result table


def _nll(row: Row) -> Cell:
    return Cell(fixed(number(row, "nll")), interval(number(row, "nll_low"), number(row, "nll_high")))


def _preference(row: Row) -> Cell:
    low, high = number(row, "preference_low"), number(row, "preference_high")
    between = "" if low is None or high is None else f"[{fixed(100 * low, 1)}, {fixed(100 * high, 1)}]"
    return Cell(percent(number(row, "preference")), between)


def _difference(row: Row) -> Cell:
    found = difference(row)
    return Cell(MISSING) if found is None else Cell(fixed(found[0], sign=True), interval(*found[1:], sign=True))


def _plain(key: str, write: Callable[[float | None], str]) -> Callable[[Row], Cell]:
    return lambda row: Cell(write(number(row, key)))


def _exact(key: str, write: Callable[[float | None], str]) -> Callable[[Row], Cell]:
    return lambda row: Cell(write(number(exact(row), key)))


def _three(value: float | None) -> str:
    return fixed(value, 3)


def _one(value: float | None) -> str:
    return fixed(value, 1)


def _reward(row: Row) -> Cell:
    return Cell(fixed(number(row, "reward")), interval(number(row, "reward_low"), number(row, "reward_high")))


COLUMNS = (
    Column("reward [95 %]", "held out, the scorer's mean", _reward, "real_reward", optional=True),
    Column("NLL [95 %]", "held out, nats per token; lower is better", _nll),
    Column("Δ vs SFT [95 %]", "paired by prompt; below 0 is better", _difference),
    Column("KL to θ₀", "sampled, nats per answer", _plain("kl_start", _three)),
    Column("entropy", "nats per token", _plain("entropy", _three), optional=True),
    Column("accuracy", "real against its opponent's", _plain("accuracy", percent)),
    Column("preference [95 %]", "held-out pairs the right way round", _preference, optional=True),
    Column("match", "answers that match the real one", _plain("match", percent), optional=True),
    Column("length", "mean answer tokens", _plain("length", _one), "real_length"),
    Column("end rate", "answers that end", _plain("end_rate", percent), "real_end_rate"),
    Column(
        "distinct-1",
        "share of different words",
        _plain("distinct_1", _three),
        "real_distinct_1",
        compact=False,
    ),
    Column(
        "distinct-2",
        "share of different word pairs",
        _plain("distinct_2", _three),
        "real_distinct_2",
        compact=False,
    ),
    Column(
        "repetition",
        "share of text said before",
        _plain("repetition", _three),
        "real_repetition",
        compact=False,
    ),
    Column("exact KL", "p_data ‖ player", _exact("kl", fixed), exact=True),
    Column("valid mass", "valid answers", _exact("valid_mass", percent), exact=True),
    Column("TV", "total variation", _exact("total_variation", _three), exact=True, compact=False),
)


def columns(run: Run) -> list[Column]:
    """The columns that this run can fill; exact ones only in the laboratory."""
    laboratory = any(exact(row) for row in run.scores.values())
    shown = [column for column in COLUMNS if laboratory or not column.exact]
    shown = [column for column in shown if not (run.rewarded and column.heading == "accuracy")]
    rows = run.scores.values()
    shown = [c for c in shown if not c.optional or any(c.cell(row).figure != MISSING for row in rows)]
    if run.prefers:  # nobody played
        shown = [column for column in shown if column.heading != "accuracy"]
    if run.start == "base":  # fine-tuning is off, so the base is θ_0
        shown = [replace(column, heading=column.heading.replace("SFT", "base")) for column in shown]
    return shown


def result_lines(run: Run) -> list[Line]:
    """One line per judged player, the best marked, then one for the real answers."""
    shown = columns(run)
    best = text(run.best.get("player")) if run.best else None
    lines = [
        Line(player, run.label(player), tuple(column.cell(row) for column in shown), player == best)
        for player, row in run.scores.items()
    ]
    if lines:
        last = list(run.scores.values())[-1]
        cells = (column.cell({_source(column): last.get(column.real)}) if column.real else Cell("") for column in shown)
        lines.append(Line(None, "real answers", tuple(cells)))
    return lines


def _source(column: Column) -> str:
    return (column.real or "").removeprefix("real_")


def result_rows(run_folder: Path) -> tuple[list[str], list[list[str]]]:
    """The compact result table for the terminal: headings, and one row of text per player.

    Player, NLL and its difference to SFT with 95 % intervals, KL to θ_0, accuracy, length, end rate;
    exact KL and valid mass in the laboratory. A star marks the best player; the last row is
    the real answers. RunError as in `read_run`.
    """
    run = read_run(run_folder)
    kept = [index for index, column in enumerate(columns(run)) if column.compact]
    header = ["player", *(columns(run)[index].heading for index in kept)]
    rows = [
        [f"{line.label} ★" if line.best else line.label, *(str(line.cells[index]) for index in kept)]
        for line in result_lines(run)
    ]
    return header, rows


# ---------------------------------------------------------------- the budget


def kind(phase: str) -> str:
    """generation, scoring, learning, judging, data or other."""
    return KINDS.get(phase.split("/")[-1], "other")


def phase_label(phase: str) -> str:
    """ "0/played" → "iteration 0: play"."""
    verbs = {"played": "play", "pairs": "score pairs", "player": "learn", "scores": "judge", "preferred": "judge pairs"}
    verbs |= {"rewards": "reward", "scored": "score tokens", "valued": "judge by the scorer", "kept": "keep pairs"}
    head, slash, tail = phase.partition("/")
    if slash and head.isdecimal():
        return text(f"iteration {head}: {verbs.get(tail, tail)}")
    names = {"base-scores": "base: judge", "sft-scores": "SFT: judge", "sft": "SFT: learn", "data": "data"}
    names |= {"reward": "reward model: learn", "reward-scores": "reward model: judge"}
    names |= {"base-valued": "base: judge by the scorer", "sft-valued": "SFT: judge by the scorer"}
    names["quantisation"] = "cost of quantising"
    return text(names.get(phase.replace("/", "-"), phase))


def budget_rows(run: Run) -> list[list[str]]:
    """Phase, seconds, tokens, FLOPs, notes; a total in the last row."""
    rows = [
        [
            phase_label(phase),
            duration(number(row, "seconds")),
            count(number(row, "tokens")),
            count(number(row, "flops")),
            _notes(row),
        ]
        for phase, row in run.phases.items()
    ]
    if rows:
        sums = [_total(run.phases.values(), key) for key in ("seconds", "tokens", "flops")]
        rows.append(["total", duration(sums[0]), count(sums[1]), count(sums[2]), ""])
    return rows


def _total(rows: Iterable[Row], key: str) -> float | None:
    found = [value for row in rows if (value := number(row, key)) is not None]
    return sum(found) if found else None


def _notes(row: Row) -> str:
    known = {"event", "phase", "seconds", "tokens", "flops", "stopped", "rolled_back", "kept", "plain_nll"}
    notes = [
        f"{text(key)} {value:.6g}" if isinstance(value, float) else f"{text(key)} {text(value)}"
        for key, value in row.items()
        if key not in known and isinstance(value, (int, float, str)) and not isinstance(value, bool)
    ]
    if row.get("stopped"):
        notes.append(f"stopped: {text(row['stopped'])}")
    if row.get("rolled_back"):
        notes.append(text(row["rolled_back"]))
    return " · ".join(notes)
