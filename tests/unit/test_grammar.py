"""World C's grammar: every probability twice, once by dynamic programming and once by writing it all out."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict

import pytest

from sparring.errors import DataError
from sparring.laboratory.grammar import (
    FIRST,
    LONGEST,
    LOOSE,
    PROMPTS,
    TOP,
    Grammar,
    build,
    corrupted,
    grammar,
    length_law,
    rows,
)

SOME = ("a+b1=", "c-a2=", "f*e3=", "d+d3=")


def derivations(rules, symbols):
    """(probability, text) of every derivation of some symbols, one by one."""
    for place, symbol in enumerate(symbols):
        if symbol in rules:
            for probability, inside in rules[symbol]:
                for rest, text in derivations(rules, [*symbols[:place], *inside, *symbols[place + 1 :]]):
                    yield probability * rest, text
            return
    yield 1.0, "".join(symbols)


@pytest.mark.parametrize("prompt", SOME)
def test_dynamic_programming_is_the_sum_over_derivations(prompt):
    made = grammar(prompt)
    total = defaultdict(float)
    for probability, text in derivations(made.rules, [TOP]):
        total[text] += probability
    assert math.fsum(total.values()) == pytest.approx(1.0, abs=1e-12)
    language = made.language()
    assert language.keys() == total.keys()
    for text, probability in total.items():
        assert language[text] == pytest.approx(probability, rel=1e-12)
        assert made.logprob(text) == pytest.approx(math.log(probability), abs=1e-12)


@pytest.mark.parametrize("prompt", SOME)
def test_the_law_of_length_is_the_languages(prompt):
    made = grammar(prompt)
    law = [0.0] * (LONGEST + 1)
    for text, probability in made.language().items():
        law[len(text)] += probability
    assert made.lengths() == pytest.approx(law, abs=1e-14)
    assert law[LONGEST] > 0


def test_samples_follow_the_law_of_length_and_p_data():
    made, rng, count = grammar("a+b2="), random.Random(0), 20_000
    drawn = Counter(made.sample(rng) for _ in range(count))
    lengths = Counter()
    for text, times in drawn.items():
        assert made.logprob(text) > -math.inf
        lengths[len(text)] += times
    for length, probability in enumerate(made.lengths()):
        spread = math.sqrt(probability * (1 - probability) / count)
        assert abs(lengths[length] / count - probability) <= 4.5 * spread
    assert drawn["a"] / count == pytest.approx(math.exp(made.logprob("a")), abs=0.01)


def test_by_hand():
    n, plain = LOOSE["2"], (1 - LOOSE["2"]) / 2
    made = grammar("a+b2=")
    assert made.logprob("b!") == pytest.approx(math.log(plain * (1 - n) * (1 - FIRST)))
    three = FIRST * FIRST * (1 - FIRST) * n * n * (1 - n)  # a+(b+a), and (a+b)+a again
    assert made.logprob("a+b+a") == pytest.approx(math.log(plain * 2 * three))
    assert grammar("a+a2=").logprob("a") == pytest.approx(math.log(plain * (1 - n)))  # both letters are a


@pytest.mark.parametrize("text", ["", "c", "a-b", "a+", "a;", "a+b+a+b+a", "a!!", "a;b+a+b", "a+b=", "a;b;a"])
def test_what_is_no_sentence_has_no_probability(text):
    assert grammar("a+b2=").logprob(text) == -math.inf


def test_talkative_prompts_give_longer_answers():
    means = [sum(n * p for n, p in enumerate(grammar(f"a+b{digit}=").lengths())) for digit in "123"]
    assert means == sorted(means)
    assert means[2] > means[0] + 2


def test_the_law_of_all_prompts_counts_the_end_token():
    law = length_law(PROMPTS)
    assert len(law) == LONGEST + 2
    assert math.fsum(law) == pytest.approx(1.0)
    assert law[0] == law[1] == 0
    assert law[2] == pytest.approx(sum((1 - n) ** 2 / 2 for n in LOOSE.values()) / 3)
    assert length_law(["a+b1="])[1:] == grammar("a+b1=").lengths()


def test_the_corrupted_grammar_is_another_distribution_with_wrong_sentences():
    for prompt in SOME:
        wrong = corrupted(prompt)
        language = wrong.language()
        assert math.fsum(language.values()) == pytest.approx(1.0)
        right = grammar(prompt).language()
        assert right.keys() < language.keys()
        assert 0.3 < math.fsum(language[text] for text in right) < 0.9


def test_a_grammar_may_be_any_finite_one():
    made = Grammar({"S": ((0.5, ("x",)), (0.5, ("T", "x"))), "T": ((1.0, ("y", "y")),)})
    assert made.language() == {"x": 0.5, "yyx": 0.5}
    assert made.lengths() == [0.0, 0.5, 0.0, 0.5]
    assert made.logprob("yyx") == math.log(0.5)


@pytest.mark.parametrize("prompt", ["", "a+b=", "a+b4=", "a/b1=", "a+g1=", "a+b1", "a+b1=\n"])
def test_a_foreign_prompt_is_refused(prompt):
    with pytest.raises(DataError, match="two letters"):
        grammar(prompt)


def test_rows_are_disjoint_valid_and_deterministic():
    train, held_out = rows(3, train=50, held_out=20, answers=3)
    assert (len(train), len(held_out)) == (150, 20)
    assert len({row["prompt"] for row in train}) == 50
    assert len({row["prompt"] for row in train + held_out}) == 70
    assert all(grammar(row["prompt"]).logprob(row["completion"]) > -math.inf for row in train + held_out)
    assert rows(3, 50, 20, 3) == (train, held_out)
    assert rows(4, 50, 20, 3) != (train, held_out)
    with pytest.raises(DataError, match="324"):
        rows(0, train=300, held_out=25)


def test_the_tokenizer_has_one_token_per_character():
    tokenizer = build()
    assert len(PROMPTS) == len(set(PROMPTS)) == 324
    for prompt in SOME:
        for text in grammar(prompt).language():
            ids = tokenizer(prompt + text).input_ids
            assert len(ids) == 1 + len(prompt + text)
            assert tokenizer.unk_token_id not in ids
            assert re.sub(r"^<s>", "", tokenizer.decode(ids)) == prompt + text
