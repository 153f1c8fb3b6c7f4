"""World C: a small probabilistic grammar, conditioned on the prompt, with an exact law of length.

A prompt names two letters, a sign between them, and how talkative the answer is: `a+b2=`. The answer is a
sentence S; n is `loose`, the table below, at the prompt's digit:

    S  → E  1/2-n/2   | E;F  n   | E!  1/2-n/2
    E  → N  1-n       | F + F  n
    F  → N  1-n       | N + N  n
    N  → a  .7        | b  .3

An answer has at most 11 characters and an end token. Sentences like a+b+a have two derivations, and where both
letters are the same so has every one, so that probabilities are sums over derivations: by dynamic programming
over spans (`Grammar.logprob`), over lengths (`Grammar.lengths`), or by writing out the language
(`Grammar.language`), which has at most 240 sentences.

The corrupted grammar is what the base is trained on: the same sentences, and wrong ones, in other proportions.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from sparring.errors import DataError
from sparring.laboratory import tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = dict[str, str]
Rules = Mapping[str, Sequence[tuple[float, tuple[str, ...]]]]

LETTERS, SIGNS, DIGITS = "abcdef", "+-*", "123"
CHARACTERS = LETTERS + SIGNS + DIGITS + "=;!"
LONGEST = 11  # characters of an answer
TOP = "S"
LOOSE = {"1": 0.2, "2": 0.4, "3": 0.6}
FIRST = 0.7  # probability of the prompt's first letter
CORRUPTED_LOOSE = {"1": 0.35, "2": 0.35, "3": 0.35}
CORRUPTED_FIRST = 0.5
WRONG = 0.2  # probability that a letter of the corrupted grammar is neither of the prompt's

PROMPTS = tuple(f"{a}{sign}{b}{digit}=" for a in LETTERS for sign in SIGNS for b in LETTERS for digit in DIGITS)
_PROMPT = re.compile(rf"([{LETTERS}])([+*-])([{LETTERS}])([{DIGITS}])=")


@dataclass(frozen=True)
class Grammar:
    """A probabilistic context-free grammar whose language is finite: no symbol leads back to itself.

    rules  nonterminal → alternatives (probability, symbols); what has no rules is a terminal of one character
    """

    rules: Rules
    _lengths: dict[str, list[float]] = field(default_factory=dict, repr=False, compare=False)

    def logprob(self, text: str) -> float:
        """log p(text) in nats, summed over all derivations by dynamic programming over spans; -inf if it has none."""

        @cache
        def inside(symbol: str, start: int, stop: int) -> float:
            if symbol not in self.rules:
                return float(text[start:stop] == symbol)
            return math.fsum(p * sequence(symbols, start, stop) for p, symbols in self.rules[symbol])

        @cache
        def sequence(symbols: tuple[str, ...], start: int, stop: int) -> float:
            if len(symbols) == 1:
                return inside(symbols[0], start, stop)
            cuts = range(start + 1, stop - len(symbols) + 2)
            return math.fsum(inside(symbols[0], start, cut) * sequence(symbols[1:], cut, stop) for cut in cuts)

        found = inside(TOP, 0, len(text)) if text else 0.0
        return math.log(found) if found > 0 else -math.inf

    def lengths(self, symbol: str = TOP) -> list[float]:
        """The exact law of length: the probability of each number of characters, from 0 on."""
        if symbol not in self.rules:
            return [0.0, 1.0]
        if symbol not in self._lengths:
            whole: list[float] = []
            for probability, symbols in self.rules[symbol]:
                part = [probability]
                for one in symbols:
                    part = _convolved(part, self.lengths(one))
                whole = _added(whole, part)
            self._lengths[symbol] = whole
        return self._lengths[symbol]

    def language(self, symbol: str = TOP) -> dict[str, float]:
        """Every sentence and its probability, written out."""
        if symbol not in self.rules:
            return {symbol: 1.0}
        found: dict[str, float] = {}
        for probability, symbols in self.rules[symbol]:
            part = {"": probability}
            for one in symbols:
                inner = self.language(one)
                part = _joined(part, inner)
            for text, weight in part.items():
                found[text] = found.get(text, 0.0) + weight
        return found

    def sample(self, rng: random.Random, symbol: str = TOP) -> str:
        """One sentence."""
        if symbol not in self.rules:
            return symbol
        weights = [probability for probability, _ in self.rules[symbol]]
        _, symbols = rng.choices(self.rules[symbol], weights)[0]
        return "".join(self.sample(rng, one) for one in symbols)


def _convolved(a: list[float], b: list[float]) -> list[float]:
    out = [0.0] * (len(a) + len(b) - 1)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            out[i + j] += p * q
    return out


def _added(a: list[float], b: list[float]) -> list[float]:
    size = max(len(a), len(b))
    return [x + y for x, y in zip(a + [0.0] * (size - len(a)), b + [0.0] * (size - len(b)), strict=True)]


def _joined(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    out: dict[str, float] = {}
    for head, p in a.items():
        for tail, q in b.items():
            out[head + tail] = out.get(head + tail, 0.0) + p * q
    return out


# ---------------------------------------------------------------- the world


@cache
def grammar(prompt: str) -> Grammar:
    """p_data(·|prompt). Raises DataError unless the prompt is like `a+b2=`."""
    a, sign, b, digit = _parts(prompt)
    return Grammar(_rules(sign, LOOSE[digit], ((FIRST, (a,)), (1 - FIRST, (b,)))))


def corrupted(prompt: str) -> Grammar:
    """What the base is trained on; DataError as in `grammar`."""
    a, sign, b, digit = _parts(prompt)
    others = [letter for letter in LETTERS if letter not in (a, b)]
    right = 1 - WRONG
    letters = ((right * CORRUPTED_FIRST, (a,)), (right * (1 - CORRUPTED_FIRST), (b,)))
    wrong = tuple((WRONG / len(others), (letter,)) for letter in others)
    return Grammar(_rules(sign, CORRUPTED_LOOSE[digit], letters + wrong))


def rows(seed: int, train: int = 200, held_out: int = 40, answers: int = 4) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, `{"prompt": …, "completion": …}`, from different prompts.

    train, held_out   prompts; answers: how many answers a training prompt has, each a row
    Raises DataError when more prompts are asked for than there are.
    """
    if train < 0 or held_out < 0 or train + held_out > len(PROMPTS):
        raise DataError(
            f"{train} training and {held_out} held-out prompts asked for, but the grammar has {len(PROMPTS)}; "
            "ask for at most that many in all"
        )
    rng = random.Random(f"grammar rows {seed}")
    chosen = rng.sample(PROMPTS, train + held_out)
    asked = [prompt for prompt in chosen[:train] for _ in range(answers)] + chosen[train:]
    made = [{"prompt": prompt, "completion": grammar(prompt).sample(rng)} for prompt in asked]
    return made[: train * answers], made[train * answers :]


def length_law(prompts: Sequence[str]) -> list[float]:
    """The exact law of an answer's tokens, end token included, mean over prompts; index: tokens, up to LONGEST + 1."""
    laws = [[0.0, *grammar(prompt).lengths()] for prompt in prompts]
    return [math.fsum(law[n] for law in laws) / len(laws) for n in range(LONGEST + 2)]


def build() -> PreTrainedTokenizerFast:
    """The grammar's tokenizer: 19 tokens, one for each character, like the laboratory's."""
    return tokenizer.build(CHARACTERS)


def _rules(sign: str, loose: float, letters: tuple[tuple[float, tuple[str, ...]], ...]) -> Rules:
    plain = (1 - loose) / 2
    return {
        "S": ((plain, ("E",)), (loose, ("E", ";", "F")), (plain, ("E", "!"))),
        "E": ((1 - loose, ("N",)), (loose, ("F", sign, "F"))),
        "F": ((1 - loose, ("N",)), (loose, ("N", sign, "N"))),
        "N": letters,
    }


def _parts(prompt: str) -> tuple[str, str, str, str]:
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise DataError(
            f'"{prompt}" is not a prompt of the grammar; give two letters, a sign and a digit as in "a+b2="'
        )
    a, sign, b, digit = match.groups()
    return a, sign, b, digit
