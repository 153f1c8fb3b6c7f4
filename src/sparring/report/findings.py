"""What the numbers say in words: the verdict, and the warnings that a reader must not miss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparring.methods import METHODS
from sparring.report.plot_tuning import tuning_words
from sparring.report.preferred import preference_verdict, preference_warnings
from sparring.report.records import Row, Run, difference, exact, number, pretty, prompts, read_run, text
from sparring.report.rewarded import reward_verdict, scorer_and_nll
from sparring.report.tables import fixed, interval, percent, phase_label

END_RATE_GAP = 0.1
DISPLACED = 0.05  # nats per answer
NEGLIGIBLE = 0.001  # nats per token
FEW = 30  # held-out prompts
LENGTH_RATIO = 1.33
SELECTED = {"nll": "held-out NLL", "exact_kl": "exact_kl", "match": "the share of answers that match"}
SELECTED["reward"] = "mean held-out reward"
HIGHER = ("match", "reward")  # metrics that are the better the higher


def verdict(run_folder: Path) -> str:
    """The headline sentences of a run; RunError as in `read_run`."""
    return verdict_of(read_run(run_folder))


def verdict_of(run: Run) -> str:
    """Who is best, by how much against SFT, and whether that is a difference at all."""
    if run.prefers and run.preferred:
        return f"{preference_verdict(run)} {' '.join(_harmed(run))}".strip()
    if run.best is None:
        return _unfinished(run)
    player = text(run.best.get("player"))
    head = f"Best player: {run.label(player)}."
    why = text(run.best.get("why")).strip()
    if not run.scores:
        return f"{head} {why}".strip()
    if run.rewarded:
        return reward_verdict(run)
    harm = f"{scorer_and_nll(run)} {' '.join(_harmed(run))}".strip()
    if player == run.start or player == "base":
        return f"{head} {_kept(run, player)} {harm}".strip()
    return f"{head} {_against_start(run, player)}{_rolled_back(run, player)} {harm}".strip()


def headline_notes(run: Run) -> list[str]:
    """What the verdict does not cover, said under it."""
    notes = tuning_words(run)
    if run.best is not None:
        if why := text(run.best.get("why")).strip():
            notes.append(pretty(why))
        if len(run.scores) > 1:
            notes.append(
                "One run, one seed: the interval covers the choice of held-out prompts, not of seeds. "
                "The best player was chosen on these same prompts, which flatters it slightly."
            )
        if text(run.best.get("player")).isdecimal():
            notes.append("Whether more fine-tuning at the same cost would have done as well was not tried in this run.")
    return notes


def _unfinished(run: Run) -> str:
    if not (run.scores or run.phases or run.steps):
        return "This run is unfinished: nothing has been recorded yet."
    planned = run.setting("reinforce" if run.rewarded else "selfplay", "iterations")
    judged = [player for player in run.scores if player.isdecimal()]
    parts = ["This run is unfinished"]
    if isinstance(planned, int):
        parts.append(f": {len(judged)} of {planned} iterations judged")
    if run.phases:
        parts.append(f", last finished phase “{phase_label(list(run.phases)[-1])}”")
    parts.append(". No best player has been chosen.")
    ranked = [(value, player) for player in judged if (value := number(run.scores[player], "nll")) is not None]
    if ranked:
        player = min(ranked)[1]
        what = "the players" if run.rewarded or run.prefers else "self-play"
        parts.append(f" So far the lowest NLL of {what} is {run.label(player)}'s. {_against_start(run, player)}")
    return "".join(parts)


def _kept(run: Run, player: str) -> str:
    row = run.scores.get(player, {})
    figure = f"held-out NLL {fixed(number(row, 'nll'))} per token"
    if number(row, "nll") is None and run.best:
        figure = fixed(number(run.best, "value"))
    played = [name for name in run.scores if name.isdecimal()]
    if not played:
        return f"No self-play iteration was judged; {figure}."
    metric = text(run.best.get("metric") or "nll") if run.best else "nll"
    measure = SELECTED.get(metric, metric)
    back = ", so the run was rolled back to it" if run.best and run.best.get("rolled_back") else ""
    rivals = "; ".join(_short(run, name) for name in played)
    return f"No self-play iteration improved on it in {measure}{back}: {figure} ({rivals})."


def _short(run: Run, player: str) -> str:
    row = run.scores[player]
    found = difference(row)
    if found is None:
        return f"{run.label(player)} {fixed(number(row, 'nll'))}"
    return f"{run.label(player)} {fixed(found[0], sign=True)} {interval(*found[1:], sign=True)}"


def _against_start(run: Run, player: str) -> str:
    row, start = run.scores.get(player, {}), run.scores.get(run.start, {})
    if number(row, "nll") is None and run.best:
        metric = text(run.best.get("metric"))
        return f"Chosen by {SELECTED.get(metric, metric)} ({fixed(number(run.best, 'value'))}); no NLL was measured."
    measured = f"Held-out NLL {fixed(number(row, 'nll'))} per token"
    if run.best and (metric := text(run.best.get("metric") or "nll")) != "nll":
        measured = f"Chosen by {SELECTED.get(metric, metric)} ({fixed(number(run.best, 'value'))}). {measured}"
    if number(start, "nll") is not None:
        measured += f" against {fixed(number(start, 'nll'))} for {run.label(run.start)}"
    found = difference(row)
    if found is None:
        return f"{measured}; no interval was measured, so whether they differ is not known."
    mean, low, high = found
    units = prompts(row)
    over = f", 95 % over {units:.0f} prompts" if units else ", 95 %"
    measured += f": difference {fixed(mean, sign=True)} {interval(low, high, sign=True)}{over}."
    if max(abs(low), abs(high)) < NEGLIGIBLE:
        return f"{measured} That is less than {NEGLIGIBLE} nats: no difference of practical size."
    if low <= 0 <= high:
        return f"{measured} The interval includes 0: no difference seen."
    if high < 0:
        return f"{measured} The interval lies below 0: an improvement on these prompts."
    return f"{measured} The interval lies above 0: worse than {run.label(run.start)}."


def _rolled_back(run: Run, player: str) -> str:
    if not (run.best and run.best.get("rolled_back")):
        return ""
    later = [run.label(name) for name in run.scores if name.isdecimal() and int(name) > int(player)]
    return f" Rolled back: {' and '.join(later) or 'the later player'} did not improve on it."


# ---------------------------------------------------------------- the last line


def last_line(run_folder: Path) -> str | None:
    """One sentence if the player handed over is worse than θ_0 or the base, else None; RunError as in `read_run`.

    Worse on the metric by which it was chosen, or on the test split; by the mean, whatever the interval.
    """
    run = read_run(run_folder)
    if run.best is None:
        return None
    player, metric = text(run.best.get("player")), text(run.best.get("metric") or "nll")
    found = _worse_than(run, player, metric, run.scores, "on the held-out prompts that chose it")
    tested = {text(row.get("player")): row for row in run.tests.values()}
    for name in dict.fromkeys((metric, "nll")):
        found += _worse_than(run, player, name, tested, "on the test split")
    if not found:
        return None
    return f"The player handed over, {run.label(player)}, is worse than {'; and than '.join(dict.fromkeys(found))}."


def _worse_than(run: Run, player: str, metric: str, rows: dict[str, Row], where: str) -> list[str]:
    """ "θ₀ (SFT) in nll on the test split: 0.1081 against 0.1073", for θ_0 and the base."""
    mine = _measured(rows.get(player, {}), metric)
    found = []
    for other in dict.fromkeys((run.start, "base")):
        theirs = _measured(rows.get(other, {}), metric)
        if other == player or mine is None or theirs is None:
            continue
        if (mine < theirs) if metric in HIGHER else (mine > theirs):
            name = {"nll": "NLL", "exact_kl": "exact KL", "match": "matches", "reward": "reward"}.get(metric, metric)
            found.append(f"{run.label(other)} in {name} {where}: {fixed(mine)} against {fixed(theirs)}")
    return found


def _measured(row: Row, metric: str) -> float | None:
    """A metric that can choose, from held-out scores or a test."""
    found = number(row, metric)
    return number(exact(row), "kl") if found is None and metric == "exact_kl" else found


# ---------------------------------------------------------------- warnings


def warnings_of(run: Run) -> list[str]:
    """Every warning the run logged, then those the numbers give."""
    logged = [f"{phase_label(phase)}: {said}" if phase else said for phase, said in run.warnings]
    displaced = preference_warnings(run) if run.prefers else _displaced(run)
    found = [*logged, *_harmed(run), *_below_plain(run), *_few(run), *displaced, *_worse(run), *_unlike_real(run)]
    if run.unreadable:
        found.append(f"{run.unreadable} lines of metrics.jsonl could not be read and are left out")
    return list(dict.fromkeys(pretty(line) for line in found))


def _harmed(run: Run) -> list[str]:
    """The untrained base is better than theta_0: fine-tuning did harm, and self-play stands on it."""
    row, start = run.scores.get("base", {}), run.scores.get(run.start, {})
    paired, mine, theirs = difference(row), number(row, "nll"), number(start, "nll")
    better = paired[2] < 0 if paired else mine is not None and theirs is not None and mine < theirs
    if run.start == "base" or not better:
        return []
    return [
        f"The untrained base has a lower held-out NLL ({fixed(mine)}) than {run.label(run.start)} ({fixed(theirs)}): "
        f"fine-tuning did harm; {_advice(run)}."
    ]


def _advice(run: Run) -> str:
    """A player that does not begin as the base may be worse for having learnt too little."""
    row = METHODS.get(str(run.setting("method", "name")))
    if row is None or row.starts_as_base:
        return "lower sft.lr or sft.epochs"
    rates = f"{row.lr[0]:g} to {row.lr[-1]:g}"
    said = f"a fresh player of {row.name} is not the base, and may have learnt too little"
    return f"{said}: raise sft.epochs, or try {rates} as sft.lr"


def _below_plain(run: Run) -> list[str]:
    """On a quantised base: the best player has not won back what quantising had cost."""
    plain, name = number(run.quantisation, "plain_nll"), (run.best or {}).get("player")
    mine = number(run.scores.get(str(name), {}), "nll")
    if plain is None or mine is None or mine <= plain:
        return []
    return [
        f"The base before it was quantised has a lower held-out NLL ({fixed(plain)}) than the best player "
        f"({fixed(mine)}): quantising cost more than training has won."
    ]


def _few(run: Run) -> list[str]:
    counts = [n for row in run.scores.values() if (n := prompts(row)) is not None]
    if not counts or min(counts) >= FEW:
        return []
    return [f"only {min(counts):.0f} held-out prompts: intervals are rough, or missing; hold more out (data.eval_size)"]


def _displaced(run: Run) -> list[str]:
    """Both log-probs fell, by more than single steps scatter, while the margin grew."""
    found = []
    for phase, steps in run.steps.items():
        last = steps[-max(1, len(steps) // 4) :]
        real, synthetic, margin = (_mean(last, key) for key in ("real_shift", "synthetic_shift", "margin"))
        if real is not None and synthetic is not None and max(real, synthetic) < -DISPLACED and (margin or 0) > 0:
            found.append(
                f"{phase_label(phase)}: likelihood displacement: over the last {len(last)} steps both log-probs had "
                f"fallen (real {fixed(real, 2)}, synthetic {fixed(synthetic, 2)} nats per answer), so the margin "
                "grew without the real answers becoming likelier"
            )
    return found


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [value for row in rows if (value := number(row, key)) is not None]
    return sum(values) / len(values) if values else None


def _worse(run: Run) -> list[str]:
    start = number(run.scores.get(run.start, {}), "nll")
    found = []
    for player, row in run.scores.items():
        paired, nll = difference(row), number(row, "nll")
        if not player.isdecimal() or nll is None:
            continue
        if paired is not None and paired[1] > 0:
            by = f"{fixed(paired[0], sign=True)} {interval(*paired[1:], sign=True)}"
        elif paired is None and start is not None and nll > start:
            by = fixed(nll - start, sign=True)
        else:
            continue
        found.append(f"{run.label(player)}: held-out NLL is worse than {run.label(run.start)} by {by} per token")
    return found


def _unlike_real(run: Run) -> list[str]:
    found = []
    for player, row in run.scores.items():
        if player == "base" and run.start != "base":
            continue
        end, real_end = number(row, "end_rate"), number(row, "real_end_rate")
        if end is not None and real_end is not None and abs(end - real_end) > END_RATE_GAP:
            found.append(
                f"{run.label(player)}: {percent(end)} of answers end by themselves, "
                f"{percent(real_end)} of the real ones"
            )
        length, real = number(row, "length"), number(row, "real_length")
        if length is not None and real and not 1 / LENGTH_RATIO <= length / real <= LENGTH_RATIO:
            found.append(
                f"{run.label(player)}: answers are {fixed(length, 1)} tokens long, the real ones {fixed(real, 1)}"
            )
    return found
