"""MT-bench (Zheng et al. 2023, arXiv 2306.05685): a player answers its questions, in FastChat's own file layout.

The judging is FastChat's: put the file under its data/mt_bench/model_answer, and call its gen_judgment.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import GenerationConfig
from sparring.data.messages import Message
from sparring.errors import DataError, InputError
from sparring.files import write_atomic
from sparring.generation.local import LocalGenerator
from sparring.generation.sampling import stream_keys
from sparring.models.players import Player, Ring

# As in fastchat/llm_judge/common.py; other categories .7.
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0,
    "coding": 0.0, "reasoning": 0.0, "stem": 0.1, "humanities": 0.1,
}  # fmt: skip
DEFAULT_TEMPERATURE = 0.7
NEW_TOKENS = 1024
STREAM = 2**33


@dataclass(frozen=True, slots=True)
class Question:
    """One question: its turns, one after another."""

    key: int
    category: str
    turns: list[str]


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """FastChat's question.jsonl; DataError for a file that is none."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [Question(int(row["question_id"]), str(row["category"]), [*map(str, row["turns"])]) for row in rows]
    except (OSError, UnicodeDecodeError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path} holds no MT-bench questions ({error}); give FastChat's question.jsonl "
            "(question_id, category, turns)"
        ) from error
    if not found:
        raise DataError(f"{path} is empty; give FastChat's question.jsonl")
    return found[:limit]


def answer_file(folder: Path, model_id: str) -> Path:
    """Where FastChat looks for a model's answers; InputError if there are some already."""
    if not model_id or "/" in model_id or "\\" in model_id:
        raise InputError(f'model id "{model_id}" is not a file name; give one without slashes')
    path = folder / "data" / "mt_bench" / "model_answer" / f"{model_id}.jsonl"
    if path.exists():
        raise InputError(f"{path} exists already; give another --model-id, or move it away")
    return path


@dataclass
class Bench:
    """A player that answers questions turn after turn.

    cut        answers that ended at the limit, without an end token
    shortened  turns whose conversation did not fit the context, so that its beginning was left out
    """

    ring: Ring
    player: Player
    settings: GenerationConfig
    seed: int = 0
    limit: int = NEW_TOKENS
    cut: int = 0
    shortened: int = 0

    def __call__(self, questions: list[Question], told: Callable[[int], None] | None = None) -> list[list[str]]:
        """The answers, [question][turn]; questions of one temperature are answered together."""
        model = self.ring.seat(self.player, self.settings.merge)
        answers: list[list[str]] = [[] for _ in questions]
        groups: dict[float, list[int]] = {}
        for index, question in enumerate(questions):
            groups.setdefault(TEMPERATURES.get(question.category, DEFAULT_TEMPERATURE), []).append(index)
        done = 0
        for temperature, group in groups.items():
            settings = self.settings.model_copy(update={"temperature": temperature, "top_p": 1.0})
            generator = LocalGenerator(model, self.ring.base, settings)
            for turn in range(max(len(questions[i].turns) for i in group)):
                self._turn(generator, questions, answers, [i for i in group if turn < len(questions[i].turns)], turn)
            done += len(group)
            if told:
                told(done)
        return answers

    def _turn(
        self,
        generator: LocalGenerator,
        questions: list[Question],
        answers: list[list[str]],
        group: list[int],
        turn: int,
    ) -> None:
        """Answer one turn of some questions. A quarter of the context at least, if wanted, is kept for the answer."""
        renderer, context = self.ring.base.renderer, self.ring.context
        most = context - min(self.limit, context // 4)
        asked: list[list[int]] = []
        for index in group:
            said: list[Message] = []
            for text, reply in zip(questions[index].turns, answers[index], strict=False):
                said += [Message("user", text), Message("assistant", reply)]
            ids = renderer.prompt((*said, Message("user", questions[index].turns[turn])), chat=True)
            self.shortened += len(ids) > most
            asked.append(ids[-most:])
        keys = stream_keys(self.seed, STREAM, [questions[i].key for i in group], [turn] * len(group))
        for index, given in zip(group, generator(asked, keys, self.limit), strict=True):
            self.cut += given.finish == "length"
            answers[index].append(renderer.decode(given.ids).strip())


def write_answers(path: Path, questions: list[Question], answers: list[list[str]], model_id: str) -> None:
    """One line per question, as fastchat/llm_judge/gen_model_answer.py writes them."""
    lines = []
    for question, turns in zip(questions, answers, strict=True):
        name = hashlib.blake2b(json.dumps([model_id, question.key, turns]).encode(), digest_size=11).hexdigest()
        row: dict[str, Any] = {
            "question_id": question.key,
            "answer_id": name,
            "model_id": model_id,
            "choices": [{"index": 0, "turns": turns}],
            "tstamp": time.time(),
        }
        lines.append(json.dumps(row) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(lines))
