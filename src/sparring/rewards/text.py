"""Scorers that read an answer's text: rules that need no model."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

from sparring.data.messages import Renderer
from sparring.errors import DataError, RewardError
from sparring.evaluation.extract import extractor
from sparring.files import digest, fingerprint_file
from sparring.imported import imported
from sparring.laboratory import world
from sparring.rewards.scorer import Answered, finite
from sparring.rewards.settings import FunctionScore, MatchScore, RegexScore, ValidityScore

Said = Callable[[str, str, str, bool], Any]  # prompt, answer, real answer, whether it ended → its score
TWICE = 8  # answers that a function of someone else's is asked about twice, when it is first used in a phase


@final
class TextScorer:
    """A function of the texts. It is asked with special tokens left out, as people read them."""

    def __init__(self, renderer: Renderer, label: str, fingerprint: str, said: Said, twice: int = 0) -> None:
        """twice: how many answers of the first call are scored once more, to see that the scores are the same."""
        self.renderer, self.label, self.fingerprint, self.said = renderer, label, fingerprint, said
        self.twice = twice

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """A score for each [N]. RewardError if the first ones get others when they are scored again."""
        found = self._told(answers)
        again, self.twice = self._told(answers[: self.twice]), max(0, self.twice - len(answers))
        for first, second in zip(found, again, strict=False):
            if first != second:
                raise RewardError(
                    f"{self.label} gave {first:g} and then {second:g} for the same answer, and must give the same "
                    "answer the same number whenever it is asked; leave out chance, and what it remembers"
                )
        return found

    def _told(self, answers: Sequence[Answered]) -> list[float]:
        decode, ends = self.renderer.decode, self.renderer.end_ids
        return [
            finite(
                self.label,
                self.said(decode(a.prompt_ids), decode(a.ids), decode(a.real_ids), bool(a.ids) and a.ids[-1] in ends),
            )
            for a in answers
        ]


def match(settings: MatchScore, renderer: Renderer) -> TextScorer:
    """1 if what counts in the answer equals what counts in the real one."""
    extract = extractor(settings.match)

    def said(prompt: str, answer: str, real: str, ended: bool) -> float:
        wanted = extract(real)
        return float(wanted is not None and extract(answer) == wanted)

    return TextScorer(renderer, f"match ({settings.match})", digest(["match", settings.match]), said)


def regex(settings: RegexScore, renderer: Renderer) -> TextScorer:
    """1 if the pattern is found, or matches the whole answer."""
    pattern = re.compile(settings.pattern)
    find = pattern.fullmatch if settings.whole else pattern.search
    print_of = digest(["regex", settings.pattern, settings.whole])
    return TextScorer(
        renderer, f"regex ({settings.pattern})", print_of, lambda _, answer, *__: float(find(answer) is not None)
    )


def validity(settings: ValidityScore, renderer: Renderer) -> TextScorer:
    """1 if the answer ended and is one of the laboratory's valid ones to its prompt."""

    def said(prompt: str, answer: str, real: str, ended: bool) -> float:
        try:
            return float(ended and answer in world.answers(prompt))
        except DataError as error:
            raise RewardError(f"scorer validity knows only the laboratory's prompts: {error}") from None

    return TextScorer(renderer, "validity", digest(["validity"]), said)


def function(settings: FunctionScore, renderer: Renderer) -> TextScorer:
    """A user's own function (prompt, answer, real) → number, called by its import path. Its file is fingerprinted."""
    label = f'scorer function "{settings.path}"'
    found = imported(settings.path, label, "(prompt, answer, real)", RewardError)

    def said(prompt: str, answer: str, real: str, ended: bool) -> Any:
        try:
            return found(prompt, answer, real)
        except Exception as error:  # someone else's code
            raise RewardError(f"{label} raised {type(error).__name__}: {_line(error)}; correct it") from error

    return TextScorer(
        renderer, label, digest(["function", settings.path, _source(settings.path, found, label)]), said, TWICE
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _source(path: str, function: Any, label: str) -> str | list[str]:
    """The fingerprint of the file that defines a function; for what is no plain function, of its module's file too.

    Raises RewardError where there is no file, for then nobody would notice that the scores are others.
    """
    if plain := _file(inspect.unwrap(function)):
        return plain
    made_of = function.func if isinstance(function, partial) else type(function)
    found = [_file(sys.modules[path.partition(":")[0]]), _file(made_of)]
    if not found[0]:
        raise RewardError(f"{label} has no file whose content says what it is; give a function in a module of your own")
    return found


def _file(what: Any) -> str:
    """The fingerprint of the file that defines it; "" where it has none."""
    try:
        return fingerprint_file(Path(inspect.getfile(what)))
    except (TypeError, OSError):
        return ""
