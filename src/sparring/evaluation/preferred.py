"""How a player does on held-out preference pairs: its implicit reward β·(log p_θ - log p_θ0), and what beats it.

Beside its accuracy stand those of three that learnt nothing from the pairs: chance (½), the longer answer, and the
likelier answer under the reference. Log-probs of chosen and rejected answers are told apart, for both may fall.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.config_selfplay import at
from sparring.data.collate import Row
from sparring.data.pairs import Preference, prompts_of
from sparring.evaluation.choose import choose
from sparring.evaluation.judge import name_of
from sparring.evaluation.people import People
from sparring.evaluation.statistics import share
from sparring.files import write_atomic
from sparring.models.players import Player
from sparring.models.scoring import computed_tokens, score
from sparring.objectives.pairwise import accuracy, margin, pairwise
from sparring.preparing import preferences
from sparring.reference import answers_of
from sparring.run import Event, Phase
from sparring.session import Session

CHANCE = 0.5


def preferred(session: Session, folder: Path, data: Phase, pairs: Phase, player: Phase, *, reference: Phase) -> Event:
    """Measure a player on the held-out pairs against the reference: one line of JSON per pair in preferred.jsonl.

    reference  θ_0, which `pairs` were scored under; here it scores the held-out ones, for judging is in no budget

    Ties are left out. The interval resamples prompts, for the pairs of one prompt are not independent.
    """
    if not session.crew.writes:
        return {}
    said: list[Preference] = preferences(data, "eval")[:]
    rows = [row for row in said if row.weight == 1]
    asked = answers_of(rows)
    reference_PR, player_PR = (
        _scored(session, who, asked) for who in (session.player(reference), session.player(player))
    )
    tokens_PR = torch.tensor([[len(row.chosen_ids), len(row.rejected_ids)] for row in rows], dtype=torch.float64)
    m_P = _margins(session, player_PR, reference_PR, tokens_PR)
    facts = {"player": name_of(player), "n": len(rows), "prompts": len(set(prompts_of(rows)))}
    facts |= _accuracies(rows, m_P, reference_PR, tokens_PR)
    facts |= _moved(session, m_P, player_PR, reference_PR, tokens_PR)
    people = People.of([row.votes for row in rows])
    facts["people"] = people and people.facts()
    lines = _lines(rows, m_P, player_PR - reference_PR)
    write_atomic(folder / "preferred.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    session.run.log({"event": "preferred", **facts})
    return {"preference": facts["preference"], "tokens": 2 * computed_tokens(session.ring.base, asked)}


def _scored(session: Session, player: Player, asked: Sequence[Row]) -> Tensor:
    """log p of the answers to each pair's prompt, the chosen one first, [P, 2]."""
    found = score(session.ring.seat(player), session.ring.base, asked, session.config.optimiser.micro_batch_tokens)
    return torch.tensor(found, dtype=torch.float64).view(-1, 2)


def _margins(session: Session, player_PR: Tensor, reference_PR: Tensor, tokens_PR: Tensor) -> Tensor:
    """The margin of each pair as it is trained, [P]."""
    play = session.config.selfplay
    if play.reduction == "mean":
        player_PR, reference_PR = player_PR / tokens_PR, reference_PR / tokens_PR
    beta = at(play.beta, 0)
    return margin(player_PR[:, 0], player_PR[:, 1:], reference_PR[:, 0], reference_PR[:, 1:], beta)[:, 0]


def _accuracies(rows: Sequence[Preference], m_P: Tensor, reference_PR: Tensor, tokens_PR: Tensor) -> Event:
    """Share of pairs that the implicit reward, the length and the reference's likelihood put the right way round.

    …_gap: the paired difference of the implicit reward's share to that of what learnt nothing.
    """
    wins = {
        "preference": m_P,
        "preference_longer": tokens_PR[:, 0] - tokens_PR[:, 1],
        "preference_likelier": reference_PR[:, 0] - reference_PR[:, 1],
    }
    facts: Event = {}
    prompts, once = prompts_of(rows), [1.0] * len(rows)
    mine = accuracy(m_P.unsqueeze(-1)).tolist()
    for name, gap_P in wins.items():
        won = accuracy(gap_P.unsqueeze(-1)).tolist()
        found = share(won, once, prompts)
        facts |= {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
        if name != "preference":
            facts[f"{name}_gap"] = share([a - b for a, b in zip(mine, won, strict=True)], once, prompts)
    return facts


def _moved(session: Session, m_P: Tensor, player_PR: Tensor, reference_PR: Tensor, tokens_PR: Tensor) -> Event:
    """Loss, margin, and where chosen and rejected answers went, each by itself, in nats per answer and per token."""
    play, shift_PR = session.config.selfplay, player_PR - reference_PR
    told_P = pairwise(m_P.unsqueeze(-1), play.loss, at(play.beta, 0))
    facts: Event = {"preference_loss": told_P.mean().item(), "preference_margin": m_P.mean().item()}
    for place, name in enumerate(("chosen", "rejected")):
        total = tokens_PR[:, place].sum()
        facts[f"{name}_logprob"] = (player_PR[:, place].sum() / total).item()
        facts[f"{name}_shift"] = shift_PR[:, place].mean().item()
        facts[f"{name}_shift_per_token"] = (shift_PR[:, place].sum() / total).item()
    return facts


def _lines(rows: Sequence[Preference], m_P: Tensor, shift_PR: Tensor) -> list[dict[str, Any]]:
    return [
        {"source": row.source, "margin": m, "chosen_shift": shift[0], "rejected_shift": shift[1], "votes": row.votes}
        for row, m, shift in zip(rows, m_P.tolist(), shift_PR.tolist(), strict=True)
    ]


def choose_preferred(session: Session, folder: Path, before: Phase, scores: Phase, told: Phase) -> Event:
    """Choose between θ_0 and the player by `dpo.select`; θ_0 prefers neither answer, so it has ½; ties go to it."""
    assert session.config.dpo is not None
    if session.config.dpo.select != "preference":
        return choose(session, folder, before, scores)
    if not session.crew.writes:
        return {}
    values = {"sft": CHANCE, "0": float(told.facts["preference"])}
    better = values["0"] > values["sft"]
    best, other = ("0", "sft") if better else ("sft", "0")
    label = "θ_1 (DPO)" if better else session.first
    reason = f"{label} has the higher held-out preference accuracy ({values[best]:.4f} against {values[other]:.4f})"
    reason = reason if values[best] != values[other] else f"θ_1 (DPO) is no better than {label} ({values[best]:.4f})"
    content = {
        "player": best, "label": label, "metric": "preference", "value": values[best], "why": reason,
        "rolled_back": not better, "values": values,
    }  # fmt: skip
    write_atomic(folder / "best.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return {"player": best}
