"""What quantising the base costs: held-out likelihood, memory of its weights, time; measured before any training.

The base as it is in its folder is loaded once for it, and let go before the quantised one is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparring.data.pairs import Prompt, prompts_of
from sparring.evaluation.nll import real_logprobs
from sparring.evaluation.statistics import difference
from sparring.models.base import Base, choose_device, load_base
from sparring.models.memory import free_memory
from sparring.models.quantised import described, folder_bytes, plain_bytes, stored_as, weight_bytes
from sparring.run import Event, Phase
from sparring.session import Session

ROOM = 1.2  # times the weights' size must be free for the plain base to be loaded


def quantisation_cost(session: Session, folder: Path, data: Phase) -> Event:
    """Log-probs of the real held-out answers under the plain base and the quantised one; one process does."""
    if not session.crew.writes:
        return {}
    prompts: Sequence[Prompt] = session.prompts(data, "eval")[:]
    plain, why = _plain(session, prompts)
    base = session.ring.base
    mine, seconds = _timed(session, base, prompts)
    tokens = [len(prompt.real_ids) for prompt in prompts]
    found: Event = {
        "quantised": described(base.quantised, session.config.model),
        "n": len(prompts),
        "bytes": weight_bytes(base.model),
        "nll": -sum(mine) / sum(tokens),
        "pass_seconds": round(seconds, 3),
        "plain_bytes": plain_bytes(base.model, base.dtype),
        "plain_dtype": str(base.dtype).removeprefix("torch."),
    }
    if plain is None:
        found["why"] = why
        session.run.warn(f"what quantising the base cost in likelihood was not measured: {why}")
    else:
        theirs, plain_seconds = plain
        found["plain_nll"] = -sum(theirs) / sum(tokens)
        found["plain_pass_seconds"] = round(plain_seconds, 3)
        found["difference"] = difference(mine, theirs, tokens, prompts_of(prompts))
    session.run.log({"event": "quantisation", **found})
    return {"nll": found["nll"], "plain_nll": found.get("plain_nll")}


def _plain(session: Session, prompts: Sequence[Prompt]) -> tuple[tuple[list[float], float] | None, str]:
    """((log-probs, seconds) of the base unquantised, ""), or (None, why that is not known)."""
    config = session.config.model
    if stored_as(session.settings):
        return None, "the base comes quantised, and what it was before is not in its folder"
    device, dtype = choose_device(config)
    needed, free = ROOM * folder_bytes(session.base_folder, dtype), free_memory(device)
    if needed > free:
        return None, f"the base in {str(dtype).removeprefix('torch.')} needs {_mib(needed)}, and {_mib(free)} are free"
    base = load_base(session.base_folder, config.model_copy(update={"quantise": "none"}), session.renderer)
    return _timed(session, base, prompts), ""


def _timed(session: Session, base: Base, prompts: Sequence[Prompt]) -> tuple[list[float], float]:
    """(log p of every real answer in nats, seconds of that), after a first pass that is not timed."""
    tokens = session.config.optimiser.micro_batch_tokens
    real_logprobs(base.model, base, prompts[:1], tokens)
    begun = time.perf_counter()
    found = real_logprobs(base.model, base, prompts, tokens)
    return found, time.perf_counter() - begun


def _mib(size: float) -> Any:
    return f"{size / 2**20:,.0f} MiB"
