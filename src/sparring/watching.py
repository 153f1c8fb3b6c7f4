"""What may end an iteration of self-play early: held-out NLL, the real answers' log-prob, the scorer's mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from sparring.data.pairs import Prompt, prompts_of
from sparring.evaluation.asking import ask_seated, sheet_of
from sparring.evaluation.judge import STREAM
from sparring.evaluation.nll import mean_nll
from sparring.evaluation.prompting.sheet import Sheet
from sparring.evaluation.valued import mean_rewards, paired_gap, rewards_of
from sparring.folder import METRICS, read_lines
from sparring.generation.play import answer_limit
from sparring.rewarding import wanted_scorer
from sparring.rewards.build import build_beside
from sparring.rewards.scorer import Scorer
from sparring.run import Event, Phase
from sparring.scaling import undisturbed
from sparring.session import Session
from sparring.trainer import Watch


def watch_for(session: Session, folder: Path, data: Phase, scores: Phase, valued: Phase | None, steps: int) -> Watch:
    """Ends an iteration that goes wrong: held-out NLL risen, the real answers' log-prob or the scorer's mean fallen.

    scores  the opponent's judgement; valued: the scorer's of it, with `selfplay.stop_score_drop`
    """
    config = session.config.selfplay
    every = max(1, math.ceil(steps / config.checks_per_iteration)) if config.checks_per_iteration else 0
    begun: float = scores.facts["plain_nll"]
    held_out: Sequence[Prompt] = session.prompts(data, "eval")[:]
    look = _look(session, data, valued) if valued else lambda: {}

    def watch(step: int, means: dict[str, float]) -> str | None:
        drop = -means.get("real_shift_per_token", 0.0)
        if config.stop_real_drop and drop > config.stop_real_drop:
            return f"the real answers' log-prob per token fell by {drop:.3f} (limit {config.stop_real_drop:g})"
        if every and step % every == 0 and step < steps:
            model = session.ring.model.eval()
            nll = mean_nll(model, session.ring.base, held_out, session.config.optimiser.micro_batch_tokens)
            session.run.log({"event": "check", "step": step, "heldout_nll": nll, **look()})
            if config.stop_nll_rise and nll - begun > config.stop_nll_rise:
                return f"held-out NLL per token rose by {nll - begun:.3f} (limit {config.stop_nll_rise:g})"
            return fallen(list(read_lines(folder / METRICS)), config.stop_score_drop)
        return None

    return watch


def fallen(events: Sequence[Event], patience: int | None) -> str | None:
    """A reason to stop if at each of the last `patience` checks the scorer's mean was certainly below the start's."""
    checks = [event.get("reward_difference") for event in events if event["event"] == "check"]
    gaps = [gap for gap in checks[-(patience or 0) :] if gap and gap["high"] < 0]
    if not patience or len(gaps) < patience:
        return None
    last, times = gaps[-1], "check" if patience == 1 else f"{patience} checks in a row"
    return (
        f"the scorer's held-out mean is below that of the iteration's start by {-last['mean']:.4f} "
        f"[{-last['high']:.4f}, {-last['low']:.4f}], certainly so at {times}"
    )


def _look(session: Session, data: Phase, valued: Phase) -> Callable[[], Event]:
    """What the scorer thinks of the player in training, against its opponent: the same prompts and random numbers."""

    @cache
    def beside() -> Scorer:
        return build_beside(wanted_scorer(session.config), session)

    @cache
    def asked() -> Sheet:
        return sheet_of(session, data, "eval")

    def look() -> Event:
        with undisturbed(session.ring.base.device):  # what is learnt is the same as if nobody looked
            sheet = asked()
            units = prompts_of(sheet.plain)
            said = ask_seated(session, sheet, answer_limit(session, data), STREAM)
            means = mean_rewards(beside(), sheet.plain, [[one.last.ids for one in row] for row in said])
        gap = paired_gap(means, rewards_of(valued), units)
        if gap is None:
            session.run.warn(
                f"{len(set(units))} held-out prompts are too few for an interval, so selfplay.stop_score_drop stops "
                "nothing; hold more out (data.eval_size)"
            )
        return {"reward": sum(means) / len(means), "reward_difference": gap}

    return look
