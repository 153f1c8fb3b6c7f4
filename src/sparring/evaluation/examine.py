"""The test: what the best and the last player do on prompts that chose nothing. See metrics.py for the yardsticks.

Each is asked once for samples and once greedily. With `evaluation.best_of` above 1 the scorer chooses one of so many
samples, and what is said of sampled answers is said of that one. It has no likelihood: the best of n is no model. One
line of JSON per prompt stays, with one number of every yardstick that has one per prompt, so that runs can be compared
prompt by prompt.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from sparring.data.pairs import prompts_of
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
    validities,
)
from sparring.evaluation.calibration import calibration_error
from sparring.evaluation.choose import label_of
from sparring.evaluation.chosen import Chosen, choose, quality_curve, scores_of_told, write_candidates, yardsticks
from sparring.evaluation.judge import name_of
from sparring.evaluation.metrics import METRICS, columns
from sparring.evaluation.nll import real_logprobs
from sparring.evaluation.prompting.sheet import Sheet
from sparring.files import write_atomic
from sparring.generation.play import answer_limit
from sparring.models.flops import Flops
from sparring.models.players import Player
from sparring.models.scoring import calibration
from sparring.rewarding import scorer_of
from sparring.rewards.scorer import Scorer
from sparring.run import Event, Phase
from sparring.session import Session

STREAM = 2**32  # random numbers of the test, away from those of judging and of any iteration
LIKELY = ("nll", "kl_base", "kl_start", "exact_kl", "template_kl", "valid_mass", "total_variation")  # need a likelihood
Answers = tuple[list[Row], list[Row]]  # samples, and one greedy answer, of each prompt


def examination(session: Session, data: Phase, start: Phase, best: Phase, last: Phase, scorer: str) -> Phase | None:
    """The phase `test`, if there are test prompts. scorer: the fingerprint of what scores answers, "" without one.

    Made anew where only scorer or `evaluation.best_of` have changed: nothing else of a finished run is.
    """
    if "test_examples" not in data.facts:
        return None
    best_of = session.config.evaluation.best_of
    settings = ({"scorer": scorer} if scorer else {}) | ({"best_of": best_of} if best_of > 1 else {})
    return session.renew("test", examine, data, start, best, last, **settings)


def examine(
    session: Session, folder: Path, data: Phase, start: Phase, best: Phase, last: Phase,
    *, best_of: int = 1, scorer: str = "",
) -> Event:  # fmt: skip
    """Measure the best and, if it is another, the last player on the test prompts: best.jsonl, last.jsonl.

    start    theta_0, against which KL is sampled
    best_of  how many answers the scorer chooses from; above 1 all are in PLAYER-candidates.jsonl
    scorer   the fingerprint of what scores answers; "": nothing does
    """
    sheet = sheet_of(session, data, "test")
    players = {"best": best} | ({} if last.name == best.name else {"last": last})
    given = scorer_of(session) if scorer and session.crew.writes else None
    spent: Counter[str] = Counter()
    means: Event = {}
    for which, phase in players.items():
        answers = _answers(session, session.player(phase), sheet, data, best_of)
        if not session.crew.writes:
            continue
        scores = scores_of_told(given, sheet, answers[0]) if given else None
        chosen = choose(answers[0], scores) if scores and best_of > 1 else None
        rows, whole, costs = (
            _of_chosen(session, sheet, chosen, answers[1])
            if chosen
            else _measured(session, sheet, phase, start, answers, scores)
        )
        write_atomic(folder / f"{which}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        means[which] = means_of(rows) | whole
        name = name_of(phase)
        about = {"which": which, "player": name, "label": label_of(name, session.first), "n": len(rows)}
        about["prompts"] = len(set(prompts_of(sheet.plain)))
        about |= {"scorer": given.label} if given else {}
        session.run.log({"event": "test", **about, **means[which]})
        if chosen and given:
            _curve(session, folder, sheet, chosen, about, given)
        spent.update(costs)
    return {**means, **spent}


def means_of(rows: list[dict[str, Any]]) -> Event:
    """Means over test rows by the names in METRICS; None where a row has no number."""
    found: Event = {}
    for name, metric in METRICS.items():
        column = columns(metric, rows)
        found[name] = column and sum(column[0]) / sum(column[1])
    return found


def _answers(session: Session, player: Player, sheet: Sheet, data: Phase, best_of: int) -> Answers:
    settings, limit = session.config.evaluation, answer_limit(session, data)
    samples = best_of if best_of > 1 else settings.samples
    sampled = ask(session, player, sheet, limit, STREAM, settings.temperature, samples)
    return sampled, ask(session, player, sheet, limit, STREAM, 0.0, 1)


Measured = tuple[list[dict[str, Any]], Event, Counter[str]]  # a row per prompt, what only the set has, what was spent


def _of_chosen(session: Session, sheet: Sheet, chosen: Chosen, greedy: list[Row]) -> Measured:
    """Of the answers that a scorer chose; what needs a likelihood is None."""
    table = _said(session, sheet, (chosen.rows, greedy))
    table |= {"reward": chosen.best_scores, "prompt_tokens": chosen.beyond}
    table |= {name: [None] * len(greedy) for name in LIKELY}
    whole = _variety(chosen.rows) | {"ece": None, "best_of": len(chosen.scores[0])}
    flops = Flops.of(session.ring.base.model)
    return _rows(table), whole, Counter(cost(flops, chosen.told, 0)) + Counter(cost(flops, greedy, 0))


def _curve(session: Session, folder: Path, sheet: Sheet, chosen: Chosen, about: Event, scorer: Scorer) -> None:
    """Log quality against n; write all answers."""
    yards = yardsticks(session, sheet, chosen.told)
    write_candidates(folder / f"{about['which']}-candidates.jsonl", sheet, chosen, yards)
    who = {"which": about["which"], "player": about["player"], "scorer": scorer.label, "prompts": about["prompts"]}
    for row in quality_curve(chosen.scores, yards, prompts_of(sheet.plain)):
        session.run.log({"event": "best_of", **who, **row})
    for name in yards:
        if (row[f"{name}_gain_high"] or 0.0) < 0:
            session.run.warn(
                f"best of {row['n']} by {scorer.label} ({about['label']}): {METRICS[name].label.split(',')[0]} "
                f"{row[name]:.3f}, of single answers {row[name] - row[f'{name}_gain']:.3f}: the scorer is fooled"
            )


def _rows(table: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def _measured(
    session: Session, sheet: Sheet, phase: Phase, start: Phase, answers: Answers, scores: list[list[float]] | None
) -> Measured:
    """Of all sampled answers; scores: what a scorer says of each."""
    told = answers[0]
    ring, temperature = session.ring, session.config.evaluation.temperature
    model, base = ring.seat(session.player(phase)), ring.base.at(temperature)
    flops = Flops.of(ring.base.model)
    table = _said(session, sheet, answers)
    table |= {} if scores is None else {"reward": [_mean(row) for row in scores]}
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
    return _rows(table), whole, Counter(cost(flops, told, passes + 1)) + Counter(cost(flops, answers[1], 0))


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
    valid = validities(session, sheet, told)
    return table if valid is None else table | {"valid": [_mean(row) for row in valid]}


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
