"""Trials in world C: the real Algorithm 1 with a tiny base, right or with a fault, and what is read off it.

Nothing of the run is simulated: session, phases, trainer and judge are the ones of `sparring run`. The read-outs
are taken when the run is over and the fault is gone, but for those of an iteration's first step.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import Config
from sparring.config_selfplay import at
from sparring.configfile import build_config
from sparring.errors import LawBroken
from sparring.generation.local import LocalGenerator
from sparring.generation.play import played_rows
from sparring.generation.sampling import stream_keys
from sparring.job import open_session, quiet_libraries, run_folder
from sparring.laboratory import grammar
from sparring.laboratory.faults import FAULTS, replaced
from sparring.laboratory.tiny import make_base
from sparring.models.players import Player
from sparring.models.scoring import sampling_gap, score
from sparring.objectives.pairwise import at_zero
from sparring.run import Run
from sparring.selfplay import self_play
from sparring.session import Session
from sparring.tasks import PairTask

READOUTS: dict[str, str] = {
    "sampling z": "how far the played answers' log-probs are from what samples of θₜ would have, in standard "
    "deviations; of all iterations the furthest from 0",
    "length law": "total variation between the lengths of the last player's answers and their exact law",
    "end rate": "share of the last player's answers that end by themselves",
    "law-1 noise": "rms difference of player's and opponent's log-probs at an iteration's first step, in nats per "
    "square root of a token; the largest",
    "first margin": "size of the mean margin at an iteration's first step, over β, in nats; the largest",
    "first loss": "SPIN's loss at an iteration's first step above ℓ(0), in nats; the largest",
    "log p of the prompt": "the last player's mean log-prob of a prompt token, in nats",
    "KL": "exact KL(p_data ‖ last player), in nats per answer, by writing out the language",
}

SETTINGS = (
    "model.dtype=fp32", "model.device=cpu", "data.render=text", "threads=1", "method.r=8", "method.dropout=0.1",
    "sft.epochs=4", "sft.lr=5e-3", "selfplay.iterations=2", "selfplay.samples=1", "selfplay.beta=1",
    "selfplay.lr=1e-3", "selfplay.lr_decay=1", "selfplay.epochs=1", "selfplay.anchor=0", "selfplay.previous=0",
    "selfplay.stop_nll_rise=null", "selfplay.stop_real_drop=null", "selfplay.checks_per_iteration=0",
    f"generation.max_new_tokens={grammar.LONGEST + 1}",
)  # fmt: skip
KL_PROMPTS = 24  # held-out prompts whose language is written out
SAMPLES = 4  # answers to each prompt of the world, for the law of length

Notes = list[dict[str, float]]  # the first step of each iteration


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended.

    stopped   the law that stopped it, or None
    readouts  name → number, of READOUTS; empty if it was stopped
    lengths   share of the last player's answers with 0, 1, 2 … tokens; empty if it was stopped
    """

    stopped: str | None
    readouts: dict[str, float]
    lengths: list[float]


class Arena:
    """The folder in which trials of one seed are run: base, data, and a right run whose θ_0 the others share."""

    def __init__(self, home: Path, base: Path, seed: int, train: int = 200) -> None:
        """train: prompts to train on."""
        self.home, self.base, self.seed = home, base, seed
        home.mkdir(parents=True, exist_ok=True)
        for name, rows in zip(("train", "eval"), grammar.rows(seed, train), strict=True):
            lines = [json.dumps(row) + "\n" for row in rows]
            (home / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def right(self) -> Outcome:
        """A trial without a fault."""
        return self._trial("right", ExitStack())

    def course(self) -> dict[str, dict[str, Any]]:
        """Exact KL and the lengths of answers of every player of the right run, by its label."""
        config, found = self._config("right"), {}
        with Run(run_folder(config)) as run:
            session = open_session(config, run)
            names = ["sft", *(f"{t}/player" for t in range(config.selfplay.iterations))]
            players = [Player.untrained(session.ring.base), *(Player.load(run.folder / name) for name in names)]
            for label, player in zip(("base", *(f"θ_{t}" for t in range(len(names)))), players, strict=True):
                model = session.ring.seat(player)
                found[label] = {"kl": exact_kl(session, model), "lengths": _answers(session, model)[0]}
        return found

    def wrong(self, fault: str, lifted: bool) -> Outcome:
        """A trial with a fault of FAULTS, and its guard in place or lifted."""
        made, stack, name = FAULTS[fault], ExitStack(), f"{fault} lifted" if lifted else fault
        if not made.fresh:
            self._share(name)
        stack.enter_context(made.inject())
        if lifted and made.guard is not None:
            stack.enter_context(made.guard.lift())
        return self._trial(name, stack)

    def _config(self, name: str) -> Config:
        about = {"name": name, "runs": str(self.home / "runs"), "seed": self.seed, "model": {"base": str(self.base)}}
        data = {"train": str(self.home / "train.jsonl"), "eval": str(self.home / "eval.jsonl")}
        return build_config({**about, "data": data}, SETTINGS)

    def _share(self, name: str) -> None:
        """Give a run the data and θ_0 of the right one, if that has been made."""
        there, here = self.home / "runs" / "right", self.home / "runs" / name
        if here.exists() or not there.exists():
            return
        here.mkdir(parents=True)
        for phase in ("data", "sft", "sft-scores", "base-scores"):
            shutil.copytree(there / phase, here / phase)
        shutil.copy(there / "run.lock.yaml", here)

    def _trial(self, name: str, fault: ExitStack) -> Outcome:
        config, notes, stopped = self._config(name), Notes(), None
        with Run(run_folder(config)) as run:
            session = open_session(config, run)
            with fault:
                fault.enter_context(_noted(notes))
                try:
                    self_play(session)
                except LawBroken as broken:
                    stopped = _law(str(broken))
            return Outcome(stopped, {}, []) if stopped else read_out(session, notes)


def make_arena_base(folder: Path, seed: int = 0) -> Path:
    """World C's base in `folder`, made unless it is there."""
    quiet_libraries()
    if not folder.exists():
        make_base(folder, seed)
    return folder


@contextmanager
def _noted(notes: Notes) -> Iterator[None]:
    """Write down what the first step of each iteration says, before anything can stop it."""
    inspect = PairTask.inspect

    def noting(task: PairTask, step: int, means: dict[str, float]) -> None:
        if step == 1:
            notes.append({"noise": math.sqrt(means["noise"]), **means})
        inspect(task, step, means)

    with replaced(PairTask, "inspect", noting):
        yield


def _law(message: str) -> str:
    found = re.search(r"law \d+", message)
    return found.group() if found else message


# ---------------------------------------------------------------- read-outs


def read_out(session: Session, notes: Notes) -> Outcome:
    """All READOUTS of a finished run."""
    play = session.config.selfplay
    folder = session.run.folder
    z = [_sampling_z(session, folder, t) for t in range(play.iterations)]
    model = session.ring.seat(Player.load(folder / str(play.iterations - 1) / "player"))
    lengths, ended = _answers(session, model)
    law = grammar.length_law(grammar.PROMPTS)
    readouts = {
        "sampling z": max(z, key=abs),
        "length law": sum(abs(p - q) for p, q in zip(law, lengths, strict=True)) / 2,
        "end rate": ended,
        "law-1 noise": max(note["noise"] for note in notes),
        "first margin": max(abs(note["margin"]) for note in notes) / at(play.beta, 0),
        "first loss": max((note["spin_loss"] - at_zero(play.loss) for note in notes), key=abs),
        "log p of the prompt": _prompt_logprob(session, model),
        "KL": exact_kl(session, model),
    }
    return Outcome(None, readouts, lengths)


def _sampling_z(session: Session, folder: Path, t: int) -> float:
    """z of the answers played in iteration t, under the player that the iteration started from."""
    opponent = Player.load(folder / (str(t - 1) + "/player" if t else "sft"))
    rows = [(row.prompt_ids, ids) for row in played_rows(folder / str(t) / "played")[:] for ids in row.synthetic_ids]
    model = session.ring.seat(opponent)
    return sampling_gap(model, session.ring.base, rows, session.config.optimiser.micro_batch_tokens).z


def _answers(session: Session, model: Any) -> tuple[list[float], float]:
    """(share of answers of each number of tokens, end rate) of a seated player, over the world's prompts."""
    asked = [ids for ids in _asked(session) for _ in range(SAMPLES)]
    keys = stream_keys(session.config.seed, 2**31 + 1, list(range(len(asked))), [0] * len(asked))
    said = LocalGenerator(model, session.ring.base, session.config.generation)(asked, keys, grammar.LONGEST + 1)
    counts = Counter(len(answer.ids) for answer in said)
    shares = [counts[n] / len(said) for n in range(grammar.LONGEST + 2)]
    return shares, sum(answer.finish == "end" for answer in said) / len(said)


def _asked(session: Session) -> list[list[int]]:
    return [session.renderer.tokenizer(prompt).input_ids for prompt in grammar.PROMPTS]


def _prompt_logprob(session: Session, model: Any) -> float:
    rows = [(ids[:1], ids[1:]) for ids in _asked(session)]
    total = sum(score(model, session.ring.base, rows, session.config.optimiser.micro_batch_tokens))
    return total / sum(len(answer) for _, answer in rows)


def exact_kl(session: Session, model: Any) -> float:
    """KL(p_data ‖ seated player) in nats per answer, mean over held-out prompts: the whole language is scored."""
    renderer, scored, weights = session.renderer, [], []
    prompts = [conversation.messages[0].content for conversation in session.loaded.eval[:KL_PROMPTS]]
    for prompt in prompts:
        asked = renderer.tokenizer(prompt).input_ids
        for text, probability in grammar.grammar(prompt).language().items():
            answer = [*renderer.tokenizer(text, add_special_tokens=False).input_ids, renderer.tokenizer.eos_token_id]
            scored.append((asked, answer))
            weights.append(probability)
    values = score(model, session.ring.base, scored, session.config.optimiser.micro_batch_tokens)
    return math.fsum(p * (math.log(p) - value) for p, value in zip(weights, values, strict=True)) / len(prompts)
