"""The test phase (a first version: NLL only)."""

from __future__ import annotations

import json
from pathlib import Path

from sparring.evaluation.nll import real_logprobs
from sparring.files import write_atomic
from sparring.run import Event, Phase
from sparring.session import Session


def examine(session: Session, folder: Path, data: Phase, start: Phase, best: Phase, last: Phase) -> Event:
    """Test rows of the chosen player and, if it is another, of the last one."""
    prompts = session.prompts(data, "test")[:]
    for which, phase in (("best", best), ("last", last)):
        if which == "last" and last == best:
            continue
        model = session.ring.seat(session.player(phase))
        nll = real_logprobs(model, session.ring.base, prompts, session.config.optimiser.micro_batch_tokens)
        rows = [{"key": p.key, "nll": -v, "tokens": len(p.real_ids)} for p, v in zip(prompts, nll, strict=True)]
        if session.crew.writes:
            write_atomic(folder / f"{which}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            mean = sum(r["nll"] for r in rows) / sum(r["tokens"] for r in rows)
            session.run.log({"event": "test", "which": which, "player": phase.name.split("/")[0], "nll": mean})
    return {}
