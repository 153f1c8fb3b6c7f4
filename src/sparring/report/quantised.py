"""What quantising the base cost, in a line and a table."""

from __future__ import annotations

from sparring.report.records import Run, number, text
from sparring.report.tables import MISSING, duration, fixed, interval


def quantised_line(run: Run) -> str:
    """One sentence; empty if the base is not quantised."""
    row = run.quantisation
    if not row:
        return ""
    head = f"{text(row.get('quantised'))} base: weights {_mib(number(row, 'plain_bytes'))} → "
    head += f"{_mib(number(row, 'bytes'))} MiB"
    plain = number(row, "plain_nll")
    if plain is None:
        return f"{head}; what that cost in likelihood was not measured: {text(row.get('why')) or 'unknown'}."
    change = f"{fixed(_gap(run), sign=True)} {_interval(run)}".strip()
    return f"{head}; held-out NLL of the base {fixed(plain)} → {fixed(number(row, 'nll'))} per token ({change})."


def quantised_rows(run: Run) -> list[list[str]]:
    """What, unquantised, quantised, difference: a line each for weights, likelihood, time; empty if there is none."""
    row = run.quantisation
    if not row:
        return []
    before, after = number(row, "plain_bytes"), number(row, "bytes")
    share = MISSING if not before or after is None else f"−{100 * (1 - after / before):.0f} %"
    plain, nll = number(row, "plain_nll"), number(row, "nll")
    gap = MISSING if plain is None else f"{fixed(_gap(run), sign=True)} {_interval(run)}".strip()
    slow, quick = number(row, "pass_seconds"), number(row, "plain_pass_seconds")
    times = MISSING if not quick or slow is None else f"× {slow / quick:.2f}"
    return [
        ["weights, MiB", _mib(before), _mib(after), share],
        ["held-out NLL of the base", fixed(plain), fixed(nll), gap],
        ["one pass over the held-out answers", duration(quick), duration(slow), times],
    ]


QUANTISED_HEADER = ("", "unquantised", "quantised", "difference")


def _gap(run: Run) -> float | None:
    plain, nll = number(run.quantisation, "plain_nll"), number(run.quantisation, "nll")
    return None if plain is None or nll is None else nll - plain


def _interval(run: Run) -> str:
    found = run.quantisation.get("difference")
    return interval(number(found, "low"), number(found, "high"), sign=True) if isinstance(found, dict) else ""


def _mib(size: float | None) -> str:
    return MISSING if size is None else f"{size / 2**20:,.1f}"
