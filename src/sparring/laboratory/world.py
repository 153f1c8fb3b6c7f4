"""A world whose data distribution is known: three ways to add three digits.

The prompt is `a+b+c=`. An answer writes out one of three orders, every sum modulo 10:

    left   .5   a+b=x;x+c=y
    right  .3   b+c=x;x+a=y
    outer  .2   a+c=x;x+b=y

Orders that give the same text (b = c, a = b, or all equal) add their probabilities, so a prompt has
at most three valid answers, and every divergence between p_data and a model is a sum of three terms.

The corrupted world is what the base model was trained on: the orders in other proportions, and sums
that are often wrong, some of them always in the same way.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence

from sparring.errors import DataError

Row = dict[str, str]

PROPORTIONS = (0.5, 0.3, 0.2)  # left, right, outer
CORRUPTED_PROPORTIONS = (0.25, 0.25, 0.5)
MISLEARNT_SHARE = 0.35  # share of the 100 pairs of digits that have a wrong sum of their own
MISLEARNT = 0.6  # probability that such a pair gets it
NOISE = 0.3  # share of noisy demonstrations, if they are asked for
SLIP = 0.1  # probability that any sum is replaced by a random digit

PROMPTS = tuple(f"{n // 100}+{n // 10 % 10}+{n % 10}=" for n in range(1000))  # 0+0+0= to 9+9+9=
_PROMPT = re.compile(r"([0-9])\+([0-9])\+([0-9])=")


# ---------------------------------------------------------------- p_data


def answers(prompt: str) -> dict[str, float]:
    """p_data(·|prompt): every valid answer and its probability, in the order left, right, outer.

    Raises DataError unless the prompt is three digits as in `3+4+5=`.
    """
    exact: dict[str, float] = {}
    for (p, q, r), weight in zip(_orders(prompt), PROPORTIONS, strict=True):
        x = (p + q) % 10
        text = _write(p, q, x, r, (x + r) % 10)
        exact[text] = exact.get(text, 0.0) + weight
    return exact


def sample(prompt: str, rng: random.Random) -> str:
    """One answer drawn from p_data(·|prompt); DataError as in `answers`."""
    valid = answers(prompt)
    return rng.choices(list(valid), weights=list(valid.values()))[0]


def rows(
    seed: int, train: int = 400, held_out: int = 150, test: int = 0, noisy: bool = False
) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, `{"prompt": …, "completion": …}`, one answer per prompt.

    All prompts are different, and none is among the `test` prompts of `test_rows`; the same seed gives the same rows.
    noisy: a share NOISE of the training answers is the corrupted world's; held-out answers stay right.
    Raises DataError when more prompts are asked for than the world's 1000.
    """
    if min(train, held_out, test) < 0 or train + held_out + test > len(PROMPTS):
        raise DataError(
            f"{train} training, {held_out} held-out and {test} test rows asked for, but the laboratory has 1000 "
            "prompts; ask for at most that many in all"
        )
    rng = random.Random(f"laboratory rows {seed}")
    taken = {row["prompt"] for row in test_rows(test)}
    chosen = rng.sample([prompt for prompt in PROMPTS if prompt not in taken], train + held_out)
    made = [{"prompt": prompt, "completion": sample(prompt, rng)} for prompt in chosen]
    if noisy:
        for row in rng.sample(made[:train], round(NOISE * train)):
            row["completion"] = corrupted_sample(row["prompt"], rng)
    return made[:train], made[train:]


def test_rows(count: int) -> list[Row]:
    """Rows for the last measurement: the same prompts and answers whatever the seed of a run."""
    rng = random.Random("laboratory test rows")
    return [{"prompt": prompt, "completion": sample(prompt, rng)} for prompt in rng.sample(PROMPTS, count)]


# ---------------------------------------------------------------- the corrupted world


def corrupted_sample(prompt: str, rng: random.Random) -> str:
    """One answer as the base model's world writes it; DataError as in `answers`."""
    p, q, r = rng.choices(_orders(prompt), weights=CORRUPTED_PROPORTIONS)[0]
    x = _corrupted_sum(p, q, rng)
    return _write(p, q, x, r, _corrupted_sum(x, r, rng))


def _corrupted_sum(p: int, q: int, rng: random.Random) -> int:
    wrong = _WRONG_SUMS.get((p, q))
    if wrong is not None and rng.random() < MISLEARNT:
        return wrong
    return rng.randrange(10) if rng.random() < SLIP else (p + q) % 10


def _wrong_sums() -> dict[tuple[int, int], int]:
    """The pairs with a wrong sum of their own: a fixed part of the world, whatever the seed of a run."""
    rng = random.Random("laboratory wrong sums")
    pairs = rng.sample([(p, q) for p in range(10) for q in range(10)], round(100 * MISLEARNT_SHARE))
    return {(p, q): (p + q + rng.randint(1, 9)) % 10 for p, q in pairs}


_WRONG_SUMS = _wrong_sums()


# ---------------------------------------------------------------- exact divergences


def exact(prompts: Sequence[str], logprobs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How far a model is from p_data, exactly: means over the prompts.

    prompts    P prompts
    logprobs   P mappings: for every valid answer, log p(answer, end token | prompt) in nats

    Returns, with q the model and S the valid answers of a prompt,

        valid_mass        q(S)
        kl                KL(p_data || q) in nats per answer = -log q(S) + KL(p_data || q(·|S))
        template_kl       the second term alone, in nats: the orders' proportions
        total_variation   (Σ_S |p_data - q| + 1 - q(S)) / 2

    A valid answer of probability zero gives an infinite kl and template_kl.
    Raises DataError for no prompts, lists of different length, or answers that are not the valid ones.
    """
    if not prompts or len(prompts) != len(logprobs):
        raise DataError(
            f"{len(prompts)} prompts and {len(logprobs)} sets of log-probabilities; give one set per prompt, "
            "for at least one prompt"
        )
    each = [_exact_of_one(prompt, scores) for prompt, scores in zip(prompts, logprobs, strict=True)]
    return {name: math.fsum(one[name] for one in each) / len(each) for name in each[0]}


def _exact_of_one(prompt: str, scores: Mapping[str, float]) -> dict[str, float]:
    data = answers(prompt)
    if scores.keys() != data.keys():
        raise DataError(f"{prompt} has log-probabilities of {sorted(scores)}; give those of {sorted(data)}")
    top = max(scores.values())
    if top == -math.inf:
        return {"valid_mass": 0.0, "kl": math.inf, "template_kl": math.inf, "total_variation": 1.0}
    log_valid = top + math.log(math.fsum(math.exp(score - top) for score in scores.values()))
    valid = math.exp(log_valid)
    apart = math.fsum(abs(p - math.exp(scores[text])) for text, p in data.items())
    return {
        "valid_mass": valid,
        "kl": math.fsum(p * (math.log(p) - scores[text]) for text, p in data.items()),
        "template_kl": math.fsum(p * (math.log(p) - scores[text] + log_valid) for text, p in data.items()),
        "total_variation": (apart + max(0.0, 1.0 - valid)) / 2,
    }


# ---------------------------------------------------------------- text


def _orders(prompt: str) -> tuple[tuple[int, int, int], ...]:
    """The digits in the orders left, right, outer: the first two are added, then the third."""
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise DataError(f'"{prompt}" is not a prompt of the laboratory; give three digits as in "3+4+5="')
    a, b, c = (int(digit) for digit in match.groups())
    return (a, b, c), (b, c, a), (a, c, b)


def _write(p: int, q: int, x: int, r: int, y: int) -> str:
    return f"{p}+{q}={x};{x}+{r}={y}"
