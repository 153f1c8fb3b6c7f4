"""The judge phase: how a player does on held-out prompts that nobody trained on.

All players answer with the same random numbers, so that their answers differ only by what they learnt. Of
several processes all answer and one scores. How they are asked and scored is in asking.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch

from sparring.config_selfplay import at
from sparring.data.pairs import Prompt, prompts_of
from sparring.evaluation.answers import describe
from sparring.evaluation.asking import Row, ask, cost, exact_of, gaps, match_shares, own_logprobs, sheet_of
from sparring.evaluation.nll import mean_nll, real_logprobs
from sparring.evaluation.prompting.sheet import Sheet
from sparring.evaluation.statistics import difference, per_token
from sparring.files import write_atomic
from sparring.generation.play import answer_limit
from sparring.models.flops import Flops
from sparring.models.players import Player
from sparring.models.scoring import score
from sparring.objectives.pairwise import accuracy, margin
from sparring.run import Event, Phase
from sparring.session import Session

STREAM = 2**31  # the stream of random numbers for judging, away from any iteration's
Judged = list[dict[str, Any]]  # one dict per held-out prompt


def judge(
    session: Session,
    folder: Path,
    data: Phase,
    player: Phase | None,
    start: Phase,
    opponent: Phase | None,
    *,
    label: str,
    iteration: int | None,
) -> Event:
    """Score one player on the held-out prompts.

    player     the phase that made it; None: the base itself
    start      theta_0, against which KL is sampled and NLL compared
    opponent   the opponent's own judgement, to tell its answers from the real ones; None: no accuracy
    """
    sheet = sheet_of(session, data, "eval")
    who = session.player(player) if player else Player.untrained(session.ring.base)
    settings, limit = session.config.evaluation, answer_limit(session, data)
    answers = ask(session, who, sheet, limit, STREAM, settings.temperature, settings.samples)
    if not session.crew.writes:
        return {}
    model, base = session.ring.seat(who), session.ring.base.at(settings.temperature)
    tokens, flops = session.config.optimiser.micro_batch_tokens, Flops.of(session.ring.base.model)
    real = real_logprobs(model, base, sheet.prompts, tokens) if sheet.likely else None
    own = own_logprobs(session, model, base, answers)
    facts: Event = {"player": name_of(player), "label": label, "n": len(sheet.plain)}
    units = prompts_of(sheet.plain)
    facts["prompts"] = len(set(units))
    facts |= _likelihood(sheet.prompts, units, real, start, player)
    plain = facts["nll"]  # as learning measures it, to see whether it rises
    if sheet.prompts is not sheet.plain or settings.temperature != 1:
        plain = mean_nll(model, session.ring.base, sheet.plain, tokens)
    if session.config.in_laboratory and sheet.likely:
        each = exact_of(session, model, base, sheet)
        facts["exact"] = {name: math.fsum(one[name] for one in each) / len(each) for name in each[0]}
    itself = player == start and settings.temperature == 1
    facts["kl_start"] = 0.0 if itself else _kl(session, answers, own, start)
    facts |= {"accuracy": None, "margin": None}
    margins: list[float] | None = None  # of each prompt's first answers, as they are shown side by side
    if opponent is not None and iteration is not None and player is not None and real is not None:
        told, margins = _tell_apart(session, sheet.prompts, real, opponent, who, iteration)
        facts |= told
    matched = match_shares(session, sheet, answers)
    facts["match"] = None if matched is None else sum(matched) / len(matched)
    # one answer per prompt, as many as there are real ones: distinct-n falls with the number of answers
    facts |= describe([row[0].last.ids for row in answers], [row[0].last.finish == "end" for row in answers])
    shape = describe([p.real_ids for p in sheet.plain], [p.real_ended for p in sheet.plain])
    facts |= {f"real_{name}": value for name, value in shape.items()}
    write_atomic(folder / "answers.jsonl", _rows(session, sheet, real, answers, own, margins))
    session.run.log({"event": "scores", **facts})
    passes = 2 + (not itself) + (facts["accuracy"] is not None)
    chosen_by = {"nll": facts["nll"], "exact": facts.get("exact"), "match": facts["match"], "plain_nll": plain}
    return {**chosen_by, **cost(flops, answers, passes)}


def _rows(
    session: Session,
    sheet: Sheet,
    real: list[float] | None,
    answers: list[Row],
    own: list[list[float]],
    margins: list[float] | None,
) -> str:
    """One line of JSON per prompt."""
    rows = [
        {
            "key": prompt.key,
            "prompt": session.renderer.decode(prompt.prompt_ids),
            "real": session.renderer.decode(prompt.real_ids),
            "answer": row[0].text,
            "finish": row[0].last.finish,
            "real_logprob": real and real[index],
            "margin": margins and margins[index],
            "ids": [one.last.ids for one in row],
            "logprobs": values,
        }
        for index, (prompt, row, values) in enumerate(zip(sheet.plain, answers, own, strict=True))
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def name_of(player: Phase | None) -> str:
    """base, sft, or an iteration's number."""
    return "base" if player is None else player.name.split("/")[0]


def _likelihood(
    prompts: Sequence[Prompt], units: Sequence[Hashable], real: list[float] | None, start: Phase, player: Phase | None
) -> Event:
    """NLL per token of the real answers, and its difference to θ_0's. units: the prompt of each row."""
    facts: Event = dict.fromkeys(("nll", "nll_low", "nll_high", "nll_difference"))
    if real is None:
        return facts
    tokens = [len(p.real_ids) for p in prompts]
    interval = per_token(real, tokens, units) or (None, None)
    facts |= {"nll": -sum(real) / sum(tokens), "nll_low": interval[0], "nll_high": interval[1]}
    judged = start.folder.parent / "sft-scores"
    if player != start and judged.exists():
        gap = difference(real, [row["real_logprob"] for row in read_judged(judged)], tokens, units)
        facts["nll_difference"] = gap and {"against": "sft", **gap}
    return facts


def _kl(session: Session, answers: Sequence[Row], own: list[list[float]], start: Phase) -> float:
    """KL(player || theta_0) per answer in nats, as the mean of log p - log p_theta_0 over the player's samples."""
    model = session.ring.seat(session.player(start))
    found = gaps(own, own_logprobs(session, model, session.ring.base, answers))
    return sum(found) / len(found)


def _tell_apart(
    session: Session,
    prompts: Sequence[Prompt],
    real: list[float],
    opponent: Phase,
    player: Player,
    iteration: int,
) -> tuple[Event, list[float]]:
    """Held-out accuracy and margin of real answers against the opponent's own; margins against its first ones."""
    judged = read_judged(opponent.folder)
    model = session.ring.seat(player)
    rows = [(p.prompt_ids, ids) for p, row in zip(prompts, judged, strict=True) for ids in row["ids"]]
    base = session.ring.base.at(session.config.evaluation.temperature)
    values = score(model, base, rows, session.config.optimiser.micro_batch_tokens)
    samples = len(judged[0]["ids"])
    real_B = torch.ones(len(prompts), dtype=torch.float64)
    synthetic_BK = torch.ones(len(prompts), samples, dtype=torch.float64)
    if session.config.selfplay.reduction == "mean":
        real_B = torch.tensor([len(p.real_ids) for p in prompts], dtype=torch.float64)
        synthetic_BK = torch.tensor([[len(ids) for ids in row["ids"]] for row in judged], dtype=torch.float64)
    m_BK = margin(
        torch.tensor(real, dtype=torch.float64) / real_B,
        torch.tensor(values, dtype=torch.float64).view(-1, samples) / synthetic_BK,
        torch.tensor([row["real_logprob"] for row in judged], dtype=torch.float64) / real_B,
        torch.tensor([row["logprobs"] for row in judged], dtype=torch.float64) / synthetic_BK,
        at(session.config.selfplay.beta, iteration),
    )
    facts = {"accuracy": accuracy(m_BK).mean().item(), "margin": m_BK.mean().item()}
    return facts, m_BK[:, 0].tolist()


def read_judged(folder: Path) -> Judged:
    """One dict per held-out prompt, as `judge` wrote it."""
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
