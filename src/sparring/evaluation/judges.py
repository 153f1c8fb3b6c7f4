"""Judges that compare two answers to one prompt: rules, a reward model, a model behind an OpenAI-compatible API.

A judge is a function (prompt, first, second) -> "first", "second" or "tie". It is always asked in both orders; where
it then contradicts itself the answers are tied, so that a liking for a place wins nothing (Zheng et al. 2023, arXiv
2306.05685). A win counts 1, a tie ½.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sparring.errors import InputError, ModelError, nearest
from sparring.evaluation.endpoint import Endpoint
from sparring.evaluation.extract import matches
from sparring.evaluation.statistics import Interval, per_token
from sparring.imported import imported

Choice = Literal["first", "second", "tie"]
Judge = Callable[[str, str, str], Choice]
OTHER: dict[Choice, Choice] = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True)
class About:
    """What a judge may need to know.

    real      the real answer of each prompt
    match     `evaluation.match` of the run
    model     the model's name, for an endpoint
    key_from  the environment variable that holds the endpoint's key
    """

    real: Mapping[str, str] = field(default_factory=dict)
    match: str | None = None
    model: str | None = None
    key_from: str | None = None


@dataclass(frozen=True)
class Verdicts:
    """What a judge said of N pairs: 1, ½ or 0 for the first player each.

    prompts    that each pair belongs to
    disagreed  pairs on which its two orders contradict each other
    unclear    replies of an endpoint that hold no verdict
    """

    wins: list[float]
    prompts: list[str]
    disagreed: int
    unclear: int = 0

    @property
    def rate(self) -> float:
        """The first player's win rate."""
        return sum(self.wins) / len(self.wins)

    @property
    def interval(self) -> Interval | None:
        """95 %, by resampling prompts; None for few."""
        return per_token([-win for win in self.wins], [1] * len(self.wins), self.prompts)


def find_judge(spec: str, about: About) -> Judge:
    """The judge that `kind:rest` names, as in rule:longer. Raises InputError if there is none such."""
    kind, colon, rest = spec.partition(":")
    if kind not in JUDGES:
        hint = f"rule:{kind}" if kind in RULES else nearest(kind, JUDGES)
        raise InputError(f'judge "{spec}" is not known; {"give " + hint if kind in RULES else hint}')
    if not colon or not rest:
        raise InputError(f'judge "{spec}" lacks what comes behind the colon; give {USAGE[kind]}')
    return JUDGES[kind](rest, about)


def compare(judge: Judge, rows: Sequence[tuple[str, str, str]], told: Callable[[int], None] | None = None) -> Verdicts:
    """Ask about (prompt, first, second), each in both orders. told: called with the number done."""
    wins: list[float] = []
    disagreed = 0
    for prompt, first, second in rows:
        choice = judge(prompt, first, second)
        again = OTHER[judge(prompt, second, first)]
        disagreed += choice != again
        wins.append({"first": 1.0, "second": 0.0, "tie": 0.5}[choice if choice == again else "tie"])
        if told:
            told(len(wins))
    unclear = judge.unclear if isinstance(judge, Endpoint) else 0
    return Verdicts(wins, [prompt for prompt, *_ in rows], disagreed, unclear)


# ---------------------------------------------------------------- rules


def by(key: Callable[[str, str], float]) -> Judge:
    """The judge that prefers the answer with the higher key(prompt, answer)."""

    def judge(prompt: str, first: str, second: str) -> Choice:
        mine, theirs = key(prompt, first), key(prompt, second)
        return "first" if mine > theirs else "second" if theirs > mine else "tie"

    return judge


def _closer(about: About) -> Judge:
    return by(lambda prompt, answer: -abs(len(answer) - len(about.real[prompt])))


def _match(about: About) -> Judge:
    return by(lambda prompt, answer: float(matches(about.match or "whole", answer, about.real[prompt])))


RULES: dict[str, Callable[[About], Judge]] = {
    "longer": lambda about: by(lambda _, answer: len(answer)),
    "shorter": lambda about: by(lambda _, answer: -len(answer)),
    "closer": _closer,  # in length, to the real answer
    "match": _match,  # by `evaluation.match`, else the whole text
}


def _rule(name: str, about: About) -> Judge:
    if name in RULES:
        return RULES[name](about)
    if ":" not in name:
        known = nearest(name, RULES)
        raise InputError(f'rule "{name}" is not known; {known}, or give your own function as rule:module:function')
    return _checked(imported(name, f'rule "{name}"', "(prompt, first, second)"), name)


def _checked(function: Callable[[str, str, str], Any], name: str) -> Judge:
    def judge(prompt: str, first: str, second: str) -> Choice:
        try:
            said = function(prompt, first, second)
        except Exception as error:  # someone else's code
            raise InputError(f'rule "{name}" failed: {type(error).__name__}: {error}') from error
        if said not in OTHER:
            raise InputError(f'rule "{name}" answered {said!r}; it must return "first", "second" or "tie"')
        choice: Choice = said
        return choice

    return judge


# ---------------------------------------------------------------- a reward model


def _reward(folder: str, about: About) -> Judge:
    """A sequence-classification model with one logit; safetensors only, no remote code, nothing downloaded."""
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise InputError(
            f"judge reward:{folder} is neither a run of `sparring reward` nor a model's folder "
            "(config.json); give a local one"
        )
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model = AutoModelForSequenceClassification.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval()
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"judge reward:{folder} cannot be read ({' '.join(str(error).split())[:200]}); give a "
            "sequence-classification model in safetensors"
        ) from error
    if model.config.num_labels != 1:
        raise ModelError(
            f"judge reward:{folder} gives {model.config.num_labels} numbers for a text; a reward model gives one"
        )
    known: dict[tuple[str, str], float] = {}

    def reward(prompt: str, answer: str) -> float:
        if (prompt, answer) not in known:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            text = tokenizer.apply_chat_template(turns, tokenize=False) if tokenizer.chat_template else prompt + answer
            ids = tokenizer(text, return_tensors="pt", truncation=True, add_special_tokens=not tokenizer.chat_template)
            with torch.no_grad():
                known[prompt, answer] = float(model(**ids).logits[0, 0])
        return known[prompt, answer]

    return by(reward)


def _endpoint(url: str, about: About) -> Judge:
    return Endpoint.at(url, about.model, about.key_from)


JUDGES: dict[str, Callable[[str, About], Judge]] = {"rule": _rule, "reward": _reward, "endpoint": _endpoint}
USAGE = {
    "rule": f"rule:NAME ({', '.join(sorted(RULES))}, or module:function)",
    "reward": "reward:FOLDER",
    "endpoint": "endpoint:URL with --model NAME",
}
