"""Fine-tuning that stops, and goes back to its best step: held-out checks, of which the best is kept.

A check takes a number of every held-out prompt: the real answer's log-prob, or what the scorer thinks of sampled
answers. Prompts are asked as they are trained on, at temperature 1 and without `evaluation.prompting`, with the same
random numbers at every check. What is learnt is the same as if nobody looked.

The weights of the best check lie beside the checkpoints. Those of the one before stay until a checkpoint is past the
better one, so that a killed run finds what it goes on with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sparring.callbacks import last_checkpoint
from sparring.config import Config
from sparring.data.messages import Renderer
from sparring.data.pairs import Prompt, prompts_of
from sparring.errors import RunError
from sparring.evaluation.judge import STREAM
from sparring.evaluation.nll import real_logprobs
from sparring.evaluation.statistics import FEWEST, difference
from sparring.evaluation.valued import mean_rewards, paired_gap
from sparring.folder import METRICS, read_lines
from sparring.generation.local import LocalGenerator
from sparring.generation.play import answer_limit, sample
from sparring.models.trained import about_trained, read_trained, write_trained
from sparring.rewarding import wanted_scorer
from sparring.rewards.build import build_beside, check_scorer
from sparring.rewards.scorer import Scorer
from sparring.run import CHECKPOINTS, Event, Phase
from sparring.scaling import undisturbed
from sparring.session import Session
from sparring.trainer import Watch

Numbers = list[float]  # one per held-out prompt
KEPT, HELD_OUT = "kept", "held out"  # names: of files, and of what stands beside the weights


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What fine-tuning is checked by.

    key    of the check's event that holds the mean
    words  what it is called
    sign   +1: the higher the better; -1: the lower
    take   () → what the event says, a number per prompt
    gap    (a check's numbers, the best's) → the paired difference of means, None with too few prompts for an interval
    """

    key: str
    words: str
    sign: int
    take: Callable[[], tuple[Event, Numbers]]
    gap: Callable[[Numbers, Numbers], Event | None]

    def better(self, mine: Event, best: Event) -> bool:
        """Whether a check is better than the best so far; of equal ones the earlier is kept."""
        return bool(self.sign * (mine[self.key] - best[self.key]) > 0)


def stop_for(session: Session, folder: Path, data: Phase, steps: int) -> Watch:
    """Checks fine-tuning `sft.checks` times, at its last step too, and ends it as `sft.stop` says."""
    config = session.config.sft
    if config.stop == "none":
        return lambda step, means: None
    held_out = session.prompts(data, "eval")[:]
    yardstick = YARDSTICKS[config.stop](session, data, held_out)
    every = max(1, math.ceil(steps / config.checks))
    units = len(set(prompts_of(held_out)))
    if units < FEWEST:
        session.run.warn(
            f"{units} held-out prompts are too few for an interval, so sft.stop {config.stop} stops nothing, "
            "and keeps the best check by its mean alone; hold more out (data.eval_size)"
        )

    def watch(step: int, means: dict[str, float]) -> str | None:
        if step % every and step != steps:
            return None
        before = checks_in(read_lines(folder / METRICS))
        session.ring.model.eval()
        with undisturbed(session.ring.base.device):
            said, numbers = yardstick.take()
        best = best_of(before)
        gap = yardstick.gap(numbers, _numbers(folder, best)) if best else None
        found = {"event": "check", "step": step, **said, "difference": gap, "kept": step}
        if best and not yardstick.better(found, best):
            found["kept"] = best["step"]
        elif step < steps:
            _keep(session, folder, step, numbers, before)
        session.run.log(found)
        return worse([*before, found], yardstick, config.patience) if step < steps else None

    return watch


def worse(checks: Sequence[Event], yardstick: Yardstick, patience: int) -> str | None:
    """A reason to stop if at each of the last `patience` checks the mean was certainly worse than the best's."""
    gaps = [check["difference"] for check in checks[-patience:]]
    wrong = [gap for gap in gaps if gap and (gap["low"] > 0 if yardstick.sign < 0 else gap["high"] < 0)]
    if len(wrong) < patience:
        return None
    times = "check" if patience == 1 else f"{patience} checks in a row"
    return f"{yardstick.words} is worse than at step {checks[-1]['kept']} by {_by(wrong[-1])}, certainly so at {times}"


def roll_back(session: Session, folder: Path, stop: str) -> Event:
    """Put the weights of the best check back, unless the last one is it; facts of what was kept, and why.

    stop  `sft.stop`
    """
    checks = checks_in(session.run.events())
    best = best_of(checks)
    if best is None:
        return {}
    last, done = checks[-1], checks[-1]["step"]
    if best["step"] == done:
        return {"kept": done, "rolled_back": None}
    key, words = NAMES[stop]
    text = f"rolled back to step {best['step']} of {done}: {words} {best[key]:.4f} there, {last[key]:.4f} at the end"
    if last["difference"]:
        text += f", a difference of {_by(last['difference'], '+')}"
    if session.crew.writes:
        read_trained(_kept(folder, best["step"]), session.ring)
        session.run.log({"event": "rollback", "kept": best["step"], "of": done, "text": text})
    return {"kept": best["step"], "rolled_back": text}


def checks_in(events: Iterable[Event]) -> list[Event]:
    """The checks among events."""
    return [event for event in events if event["event"] == "check"]


def best_of(checks: Sequence[Event]) -> Event | None:
    """The check whose weights are kept; None before the first."""
    return next((check for check in checks if check["step"] == checks[-1]["kept"]), None)


def _by(gap: Event, sign: str = "") -> str:
    low, high = gap["low"], gap["high"]
    if not sign and gap["mean"] < 0:
        return f"{-gap['mean']:.4f} [{-high:.4f}, {-low:.4f}]"
    return f"{gap['mean']:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def stopped_by(config: Config, renderer: Renderer, base_fingerprint: str) -> Event:
    """What θ_0 is made from, too, with sft.stop scorer: the scorer's content, and how it is shown answers."""
    scorer = check_scorer(wanted_scorer(config), renderer, base_fingerprint)
    return {"scorer": scorer, "shown": [config.evaluation.samples, config.generation.max_new_tokens]}


# ---------------------------------------------------------------- yardsticks


def _nll(session: Session, data: Phase, held_out: list[Prompt]) -> Yardstick:
    """NLL per token of the real answers."""
    tokens = [len(prompt.real_ids) for prompt in held_out]

    def take() -> tuple[Event, Numbers]:
        most = session.config.optimiser.micro_batch_tokens
        found = real_logprobs(session.ring.model, session.ring.base, held_out, most)
        return {"heldout_nll": -sum(found) / sum(tokens)}, found

    return Yardstick(*NAMES["nll"], -1, take, lambda mine, best: difference(mine, best, tokens, prompts_of(held_out)))


def _reward(session: Session, data: Phase, held_out: list[Prompt]) -> Yardstick:
    """The scorer's mean over sampled answers; NLL beside it."""
    config, limit, nll = session.config, answer_limit(session, data), _nll(session, data, held_out)
    settings = config.generation.model_copy(update={"temperature": 1.0, "top_p": 1.0})

    @cache
    def beside() -> Scorer:
        return build_beside(wanted_scorer(config), session)

    def take() -> tuple[Event, Numbers]:
        generator = LocalGenerator(session.ring.model, session.ring.base, settings)
        said = sample(generator, held_out, config.seed, STREAM, config.evaluation.samples, limit)
        means = mean_rewards(beside(), held_out, [[answer.ids for answer in row] for row in said])
        return {**nll.take()[0], "reward": sum(means) / len(means)}, means

    return Yardstick(*NAMES["scorer"], 1, take, lambda mine, best: paired_gap(mine, best, prompts_of(held_out)))


NAMES = {"nll": ("heldout_nll", "held-out NLL per token"), "scorer": ("reward", "the scorer's held-out mean")}
YARDSTICKS: dict[str, Callable[[Session, Phase, list[Prompt]], Yardstick]] = {"nll": _nll, "scorer": _reward}


# ---------------------------------------------------------------- what is kept


def _keep(session: Session, folder: Path, step: int, numbers: Numbers, before: Sequence[Event]) -> None:
    """Write the weights of a step and its numbers; drop what no kill can make needed again."""
    home = folder / CHECKPOINTS
    write_trained(_place(folder, step), session.ring, {HELD_OUT: json.dumps(numbers)})
    saved = last_checkpoint(home)
    done = int(saved.name.split("-")[1]) if saved else 0
    found = best_of([check for check in before if check["step"] <= done])  # after a kill, it is the best again
    needed = {_place(folder, one) for one in (step, found["step"] if found else step)}
    for old in home.glob(f"{KEPT}-*.safetensors"):
        if old not in needed:
            old.unlink()


def _kept(folder: Path, step: int) -> Path:
    """Where the best step is kept; RunError if someone has removed it."""
    path = _place(folder, step)
    if not path.exists():
        raise RunError(f"{path} is gone, which was the best step so far; remove {folder} to fine-tune again")
    return path


def _place(folder: Path, step: int) -> Path:
    return folder / CHECKPOINTS / f"{KEPT}-{step}.safetensors"


def _numbers(folder: Path, best: Event) -> Numbers:
    found: Numbers = json.loads(about_trained(_kept(folder, best["step"]))[HELD_OUT])
    return found
