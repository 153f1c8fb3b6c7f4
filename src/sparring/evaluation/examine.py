"""The test: what the best and the last player do on prompts that chose nothing. See metrics.py for the yardsticks.

Each is asked once for samples and once greedily. One line of JSON per prompt stays, with one number of every
yardstick that has one per prompt, so that runs can be compared prompt by prompt.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from sparring.evaluation.answers import distinct, repetition, self_bleu
from sparring.evaluation.asking import (
    Row,
    ask,
    cost,
    exact_of,
    gaps,
    match_shares,
    own_logprobs,
    real_rows,
    sheet_of,
)
from sparring.evaluation.calibration import calibration_error
from sparring.evaluation.choose import label_of
from sparring.evaluation.judge import name_of
from sparring.evaluation.metrics import METRICS, columns
from sparring.evaluation.nll import real_logprobs
from sparring.evaluation.prompting.sheet import Sheet
from sparring.files import write_atomic
from sparring.generation.play import answer_limit
from sparring.models.flops import Flops
from sparring.models.players import Player
from sparring.models.scoring import calibration
from sparring.run import Event, Phase
from sparring.session import Session

STREAM = 2**32  # random numbers of the test, away from those of judging and of any iteration
Answers = tuple[list[Row], list[Row]]  # samples, and one greedy answer, of each prompt


def examine(session: Session, folder: Path, data: Phase, start: Phase, best: Phase, last: Phase) -> Event:
    """Measure the best and, if it is another, the last player on the test prompts: best.jsonl, last.jsonl.

    start  theta_0, against which KL is sampled
    """
    sheet = sheet_of(session, data, "test")
    players = {"best": best} | ({} if last.name == best.name else {"last": last})
    spent: Counter[str] = Counter()
    means: Event = {}
    for which, phase in players.items():
        answers = _answers(session, session.player(phase), sheet, data)
        if not session.crew.writes:
            continue
        rows, whole, costs = _measured(session, sheet, phase, start, answers)
        write_atomic(folder / f"{which}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        means[which] = means_of(rows) | whole
        name = name_of(phase)
        about = {"which": which, "player": name, "label": label_of(name, session.first), "n": len(rows)}
        session.run.log({"event": "test", **about, **means[which]})
        spent.update(costs)
    return {**means, **spent}


def means_of(rows: list[dict[str, Any]]) -> Event:
    """Means over test rows by the names in METRICS; None where a row has no number."""
    found: Event = {}
    for name, metric in METRICS.items():
        column = columns(metric, rows)
        found[name] = column and sum(column[0]) / sum(column[1])
    return found


def _answers(session: Session, player: Player, sheet: Sheet, data: Phase) -> Answers:
    settings, limit = session.config.evaluation, answer_limit(session, data)
    sampled = ask(session, player, sheet, limit, STREAM, settings.temperature, settings.samples)
    return sampled, ask(session, player, sheet, limit, STREAM, 0.0, 1)


def _measured(
    session: Session, sheet: Sheet, phase: Phase, start: Phase, answers: Answers
) -> tuple[list[dict[str, Any]], Event, Counter[str]]:
    """(a row per prompt, what only the whole set has, tokens and FLOPs)."""
    told = answers[0]
    ring, temperature = session.ring, session.config.evaluation.temperature
    model, base = ring.seat(session.player(phase)), ring.base.at(temperature)
    flops = Flops.of(ring.base.model)
    table = _said(session, sheet, answers)
    whole = _variety(told) | {"ece": None}
    passes = 1
    if sheet.likely:
        more, whole["ece"] = _likely(session, sheet, model, base)
        table |= more
        passes += 2
    own = own_logprobs(session, model, base, told)
    table["kl_base"] = gaps(own, own_logprobs(session, ring.seat(Player.untrained(ring.base)), ring.base, told))
    if phase.name == start.name and temperature == 1:
        table["kl_start"] = [0.0] * len(told)
    else:
        model = ring.seat(session.player(start))
        table["kl_start"] = gaps(own, own_logprobs(session, model, ring.base, told))
        passes += 1
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    return rows, whole, Counter(cost(flops, told, passes + 1)) + Counter(cost(flops, answers[1], 0))


def _said(session: Session, sheet: Sheet, answers: Answers) -> dict[str, list[Any]]:
    """Columns of what was asked and said."""
    told, greedy = answers
    decode = session.renderer.decode
    table: dict[str, list[Any]] = {
        "key": [prompt.key for prompt in sheet.plain],
        "prompt": [decode(prompt.prompt_ids) for prompt in sheet.plain],
        "real": [decode(prompt.real_ids) for prompt in sheet.plain],
        "answer": [row[0].text for row in told],
        "greedy": [row[0].text for row in greedy],
        "finish": [row[0].last.finish for row in told],
        "tokens": [len(prompt.real_ids) for prompt in sheet.plain],
        "length": [_mean([one.tokens for one in row]) for row in told],
        "ended": [_mean([one.last.finish == "end" for one in row]) for row in told],
        "repetition": [_mean([repetition(one.last.ids) for one in row]) for row in told],
        "prompt_tokens": [_mean([one.beyond for one in row]) for row in told],
        "ids": [[one.last.ids for one in row] for row in told],
    }
    for name, said in (("match", told), ("match_greedy", greedy)):
        shares = match_shares(session, sheet, said)
        table |= {} if shares is None else {name: shares}
    return table


def _variety(told: list[Row]) -> Event:
    """How different the first answers to different prompts are."""
    ids = [row[0].last.ids for row in told]
    return {"distinct_1": distinct(ids, 1), "distinct_2": distinct(ids, 2), "self_bleu": self_bleu(ids)}


def _likely(session: Session, sheet: Sheet, model: Any, base: Any) -> tuple[dict[str, list[Any]], float]:
    """Columns of the real answers' likelihood, exact ones in the laboratory; and the calibration error."""
    tokens = session.config.optimiser.micro_batch_tokens
    table: dict[str, list[Any]] = {"nll": [-value for value in real_logprobs(model, base, sheet.prompts, tokens)]}
    if session.config.in_laboratory:
        each = exact_of(session, model, base, sheet)
        table |= {("exact_kl" if name == "kl" else name): [one[name] for one in each] for name in each[0]}
    return table, calibration_error(*calibration(model, base, real_rows(sheet.prompts), tokens))


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))
