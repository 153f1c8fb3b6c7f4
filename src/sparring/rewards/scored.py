"""`sparring reward score`: a number for every answer in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sparring.browse import read_settings
from sparring.config import Config
from sparring.data.formats import FORMATS
from sparring.data.messages import Renderer
from sparring.data.sources import find_rows
from sparring.data.values import BadRow
from sparring.errors import DataError, InputError
from sparring.evaluation.judges import Judge, by
from sparring.files import written
from sparring.job import quiet_libraries
from sparring.models.base import find_base, fingerprint_base, load_base, load_renderer
from sparring.models.players import Ring
from sparring.names import reward_model
from sparring.rewards.model import Made, ModelScorer, check_reward, find_reward
from sparring.rewards.scorer import Answered

ANSWERS = ("answer", "completion", "response", "output")
AT_ONCE = 1024  # rows that are scored together


def score_file(run: Path, file: Path, out: Path | None = None) -> Iterator[str]:
    """Each row of a file as a line of JSON with its `score`; to `out` as well, whole or not at all, if it is given.

    run  of a reward model. Rows hold `messages`, or `prompt` and an answer (ANSWERS). All rows are read and checked
    before the model is loaded. Raises DataError with file and line, RewardError for the model.
    """
    found = _Found.of(run)
    raws, answers = _read(file, found.config, found.renderer)
    scorer = found.scorer()
    _fit(raws, answers, scorer.ring.context)
    lines = _lines(scorer, raws, answers)
    if out is None:
        yield from lines
        return
    try:
        with written(out) as opened:
            for line in lines:
                opened.write(f"{line}\n".encode())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise InputError(f"--out {out} cannot be written; give a file in a folder that exists") from None


def reward_judge(spec: str) -> Judge | None:
    """The judge of `sparring judge` that `reward:RUN` names; None if it is not a run of `sparring reward`.

    The prompt is one turn of the user, if the reward model learnt from chats; else the answer follows right after it.
    """
    kind, _, path = spec.partition(":")
    run = Path(path).expanduser()
    if kind != "reward" or not reward_model(run):
        return None
    found = _Found.of(run)
    scorer = found.scorer()

    @cache
    def worth(prompt: str, answer: str) -> float:
        raw = {"prompt": prompt, "answer": answer if answer.strip() else "0"}
        asked = _answered(prompt[:60], raw, found.config, found.renderer)
        if not answer.strip():  # a player may end at once, which no real answer does
            asked = Answered(asked.prompt_ids, list(found.renderer.end_ids[:1]), [])
        _fit([(prompt[:60], raw)], [asked], scorer.ring.context)
        return scorer([asked])[0]

    return by(worth)


@dataclass(frozen=True, slots=True)
class _Found:
    """A reward model's run, and what its model stands on; no weights yet."""

    made: Made
    config: Config
    folder: Path
    renderer: Renderer

    @classmethod
    def of(cls, run: Path) -> _Found:
        made = find_reward(run)
        config = Config.model_validate(read_settings(run))
        quiet_libraries()
        folder = find_base(config.model)
        renderer = load_renderer(folder, config.model)
        check_reward(made, fingerprint_base(folder, config.model), renderer)
        return cls(made, config, folder, renderer)

    def scorer(self) -> ModelScorer:
        """Load the base, and the reward model on it."""
        ring = Ring(
            load_base(self.folder, self.config.model, self.renderer), self.config.method, self.config.model.base
        )
        return ModelScorer(ring, self.made, self.config.optimiser.micro_batch_tokens)


def _lines(scorer: ModelScorer, raws: list[tuple[str, Any]], answers: list[Answered]) -> Iterator[str]:
    for start in range(0, len(raws), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        for (_, raw), score in zip(raws[part], scorer(answers[part]), strict=True):
            yield json.dumps({**raw, "score": score}, ensure_ascii=False)


def _read(file: Path, config: Config, renderer: Renderer) -> tuple[list[tuple[str, Any]], list[Answered]]:
    rows = find_rows(str(file), None, ("", "train"), config.data.separator, 0)
    raws = list(rows.read(0, rows.count()))
    if not raws:
        raise DataError(f"{file} is empty; give rows with a prompt and an answer")
    return raws, [_answered(source, raw, config, renderer) for source, raw in raws]


def _answered(source: str, raw: Any, config: Config, renderer: Renderer) -> Answered:
    try:
        if isinstance(raw, BadRow):
            raise raw
        if not isinstance(raw, Mapping):
            raise BadRow(source, "wrong type", "the row must hold named columns")
        if "messages" in raw:
            conversation = FORMATS["messages"].parse(raw, source, config.data)
        else:
            column = next((name for name in ANSWERS if name in raw), None)
            if column is None:
                raise BadRow(source, "missing column", f"no answer ({', '.join(ANSWERS)})")
            row = {name: raw[name] for name in ("prompt", "system") if name in raw}
            conversation = FORMATS["prompt_completion"].parse({**row, "completion": raw[column]}, source, config.data)
    except BadRow as fault:
        raise DataError(str(fault).replace(", or set data.bad_rows: skip", "")) from None
    example = renderer.render(conversation)[0]
    return Answered(example.prompt_ids, example.answer_ids, [])


def _fit(raws: list[tuple[str, Any]], answers: list[Answered], context: int) -> None:
    for (source, _), answer in zip(raws, answers, strict=True):
        size = len(answer.prompt_ids) + len(answer.ids)
        if size > context:
            raise DataError(f"{source}: {size} tokens, but the model's context is {context}; shorten the answer")
