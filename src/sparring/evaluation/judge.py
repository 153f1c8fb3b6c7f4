"""The judge phase: how a player does on held-out prompts that nobody trained on.

All players answer with the same random numbers, so that their answers differ only by what they learnt. Of
several processes all answer and one scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparring.config import at
from sparring.data.pairs import Prompt
from sparring.evaluation.answers import describe
from sparring.evaluation.nll import real_logprobs
from sparring.evaluation.statistics import difference, per_token
from sparring.files import write_atomic
from sparring.generation.base import Answer
from sparring.generation.local import LocalGenerator
from sparring.generation.play import answer_limit, sample
from sparring.laboratory.exact import measure
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
    prompts: list[Prompt] = session.prompts(data, "eval")[:]
    who = session.player(player) if player else Player.untrained(session.ring.base)
    answers = _answers(session, who, prompts, data)
    if not session.crew.writes:
        return {}
    session.ring.seat(who)
    real, own = _score_both(session, prompts, answers)
    facts: Event = {"player": _name(player), "label": label, "n": len(prompts)}
    facts |= _likelihood(prompts, real, start, player)
    facts["kl_start"] = 0.0 if player == start else _kl(session, prompts, answers, own, start)
    facts |= {"accuracy": None, "margin": None}
    if opponent is not None and iteration is not None and player is not None:
        facts |= _tell_apart(session, prompts, real, opponent, who, iteration)
    # one answer per prompt, as many as there are real ones: distinct-n falls with the number of answers
    facts |= describe([row[0].ids for row in answers], [row[0].finish == "end" for row in answers])
    shape = describe([p.real_ids for p in prompts], [p.real_ended for p in prompts])
    facts |= {f"real_{name}": value for name, value in shape.items()}
    if session.config.in_laboratory:
        facts["exact"] = _exact(session, who, prompts)
    rows = [
        {
            "key": prompt.key,
            "prompt": session.renderer.decode(prompt.prompt_ids),
            "real": session.renderer.decode(prompt.real_ids),
            "answer": session.renderer.decode(row[0].ids),
            "finish": row[0].finish,
            "real_logprob": logprob,
            "ids": [a.ids for a in row],
            "logprobs": values,
        }
        for prompt, logprob, row, values in zip(prompts, real, answers, own, strict=True)
    ]
    write_atomic(folder / "answers.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    session.run.log({"event": "scores", **facts})
    passes = 2 + (player != start) + (facts["accuracy"] is not None)
    return {"nll": facts["nll"], "exact": facts.get("exact"), **_cost(session, prompts, answers, passes)}


def _cost(session: Session, prompts: Sequence[Prompt], answers: list[list[Answer]], passes: int) -> Event:
    """Tokens and FLOPs of decoding, and of `passes` forward passes over the held-out answers."""
    flops = Flops.of(session.ring.base.model)
    asked = [len(p.prompt_ids) for p, row in zip(prompts, answers, strict=True) for _ in row]
    said = [len(a.ids) for row in answers for a in row]
    lengths = [a + b for a, b in zip(asked, said, strict=True)]
    total = flops.decoding(asked, said) + passes * flops.forward(lengths, sum(said))
    return {"tokens": sum(lengths), "sampled": sum(said), "flops": total}


def _name(player: Phase | None) -> str:
    return "base" if player is None else player.name.split("/")[0]


def _answers(session: Session, player: Player, prompts: Sequence[Prompt], data: Phase) -> list[list[Answer]]:
    """Sampled answers [prompt][sample]; each process gives its part."""
    config, crew = session.config, session.crew
    limit = answer_limit(session, data)
    generator = LocalGenerator(session.ring.seat(player, config.generation.merge), session.ring.base, config.generation)
    mine = range(crew.rank, len(prompts), crew.size)
    asked = [prompts[i] for i in mine]
    given = sample(generator, asked, config.seed, STREAM, config.evaluation.samples, limit) if asked else []
    answers = dict(crew.gather(list(zip(mine, given, strict=True))))
    return [answers[i] for i in range(len(prompts))]


def _score_both(
    session: Session, prompts: Sequence[Prompt], answers: list[list[Answer]]
) -> tuple[list[float], list[list[float]]]:
    """log p of the real answers, and of the sampled ones, under the seated player."""
    model, tokens = session.ring.model, session.config.optimiser.micro_batch_tokens
    real = real_logprobs(model, session.ring.base, prompts, tokens)
    return real, _own(session, model, prompts, answers)


def _own(session: Session, model: Any, prompts: Sequence[Prompt], answers: list[list[Answer]]) -> list[list[float]]:
    rows = [(p.prompt_ids, a.ids) for p, row in zip(prompts, answers, strict=True) for a in row]
    values = iter(score(model, session.ring.base, rows, session.config.optimiser.micro_batch_tokens))
    return [[next(values) for _ in row] for row in answers]


def _likelihood(prompts: Sequence[Prompt], real: list[float], start: Phase, player: Phase | None) -> Event:
    tokens = [len(p.real_ids) for p in prompts]
    interval = per_token(real, tokens) or (None, None)
    facts: Event = {"nll": -sum(real) / sum(tokens), "nll_low": interval[0], "nll_high": interval[1]}
    facts["nll_difference"] = None
    judged = start.folder.parent / "sft-scores"
    if player != start and judged.exists():
        gap = difference(real, [row["real_logprob"] for row in read_judged(judged)], tokens)
        facts["nll_difference"] = gap and {"against": "sft", **gap}
    return facts


def _kl(
    session: Session,
    prompts: Sequence[Prompt],
    answers: list[list[Answer]],
    own: list[list[float]],
    start: Phase,
) -> float:
    """KL(player || theta_0) per answer in nats, as the mean of log p - log p_theta_0 over the player's samples."""
    model = session.ring.seat(session.player(start))
    theirs = _own(session, model, prompts, answers)
    gaps = [a - b for mine, other in zip(own, theirs, strict=True) for a, b in zip(mine, other, strict=True)]
    return sum(gaps) / len(gaps)


def _tell_apart(
    session: Session,
    prompts: Sequence[Prompt],
    real: list[float],
    opponent: Phase,
    player: Player,
    iteration: int,
) -> Event:
    """Held-out accuracy and margin of real answers against the opponent's own held-out answers."""
    judged = read_judged(opponent.folder)
    model = session.ring.seat(player)
    rows = [(p.prompt_ids, ids) for p, row in zip(prompts, judged, strict=True) for ids in row["ids"]]
    values = score(model, session.ring.base, rows, session.config.optimiser.micro_batch_tokens)
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
    return {"accuracy": accuracy(m_BK).mean().item(), "margin": m_BK.mean().item()}


def _exact(session: Session, player: Player, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Distances to the laboratory's known p_data, by enumeration."""
    model, base = session.ring.seat(player), session.ring.base
    tokens = session.config.optimiser.micro_batch_tokens
    return measure(
        lambda asked, answers: score(model, base, list(zip(asked, answers, strict=True)), tokens),
        session.renderer.tokenizer,
        [session.renderer.decode(p.prompt_ids) for p in prompts],
    )


def read_judged(folder: Path) -> Judged:
    """One dict per held-out prompt, as `judge` wrote it."""
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
