"""The judge phase of a reward model: its rewards on held-out pairs, and what they are worth."""

from __future__ import annotations

import json
from pathlib import Path

from sparring.data.pairs import Preference, prompts_of
from sparring.evaluation.rewarded_pairs import measure_pairs
from sparring.files import write_atomic
from sparring.models.flops import Flops
from sparring.preparing import preferences
from sparring.rewards.model import ModelScorer, find_reward
from sparring.rewards.scorer import Answered
from sparring.run import Event, Phase
from sparring.session import Session


def judge_reward(session: Session, folder: Path, data: Phase, made: Phase) -> Event:
    """Score the held-out pairs; writes scores.json and pairs.jsonl. Several processes: one does."""
    if not session.crew.writes:
        return {}
    pairs: list[Preference] = preferences(data, "eval")[:]
    scorer = ModelScorer(session.ring, find_reward(made.folder), session.config.optimiser.micro_batch_tokens)
    answers = [Answered(p.prompt_ids, ids, []) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]
    found = scorer(answers)
    chosen, rejected = found[::2], found[1::2]
    facts = measure_pairs(
        chosen,
        rejected,
        [(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs],
        [p.weight for p in pairs],
        prompts_of(pairs),
        [p.votes for p in pairs],
    )
    write_atomic(folder / "scores.json", json.dumps(facts, indent=2) + "\n")
    decode = session.renderer.decode
    rows = [
        {
            "source": p.source, "prompt": decode(p.prompt_ids), "chosen": decode(p.chosen_ids),
            "rejected": decode(p.rejected_ids), "chosen_reward": a, "rejected_reward": b,
        }
        for p, a, b in zip(pairs, chosen, rejected, strict=True)
    ]  # fmt: skip
    write_atomic(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    session.run.log({"event": "rewarded", **facts})
    lengths = [len(one.prompt_ids) + len(one.ids) for one in answers]
    return {"tokens": sum(lengths), "flops": Flops.of(session.ring.base.model).forward(lengths, 0)}
