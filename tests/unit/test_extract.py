"""Final answers: what is found in a text, and what a bad expression is told."""

from __future__ import annotations

import pytest

from sparring.configfile import build_config
from sparring.errors import ConfigError
from sparring.evaluation.extract import MOST, extractor, matches


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("She has 3 apples and 12 pears.", "12"),
        ("5*3 = <<5*3=15>>15\n#### 1,234", "1234"),
        ("#### -7 dollars, of 9", "9"),
        ("the total is $1,234.50", "1234.5"),
        ("It is 12.", "12"),
        ("3-5", "5"),
        ("5 - 3", "3"),
        ("it fell to −12.5 °C", "-12.5"),
        ("-$1,000", "-1000"),
        ("1,2", "2"),
        ("12,3456", "3456"),
        (".5", "0.5"),
        ("-.50", "-0.5"),
        ("-0", "0"),
        ("007", "7"),
        ("3.0", "3"),
        ("100", "100"),
        ("v1.2", "1.2"),
        ("12 #### none", "12"),
        ("9" * 40 + "1", "9" * 40 + "1"),
        ("none at all", None),
        ("", None),
    ],
)
def test_the_last_number(text: str, found: str | None) -> None:
    assert extractor("last_number")(text) == found


def test_whole_and_expressions() -> None:
    assert extractor("whole")(" a b \n") == "a b"
    assert extractor("answer[1-4]")("answer1, no: answer3.") == "answer3"
    assert extractor(r"(?i)answer:\s*(\w+)")("Answer: yes. ANSWER: no") == "no"
    assert extractor(r"x(y)?")("xy x") is None  # the last match has no first group
    assert extractor("z")("abc") is None


def test_matching_needs_something_to_match() -> None:
    assert matches("last_number", "so 5", "5.0")
    assert not matches("last_number", "so 6", "5")
    assert not matches("last_number", "nothing", "nothing")
    assert matches("whole", "a ", "a")


def test_only_the_end_of_a_long_text_is_searched() -> None:
    assert extractor("b")("b" + "a" * MOST) is None
    assert extractor("last_number")("7 " + "a" * MOST) is None
    assert extractor("b")("b" + "a" * (MOST - 1)) == "b"


@pytest.mark.parametrize("bad", ["(", "[a", "*", "(?P<x>a)(?P<x>b)", "a{99999999999}"])
def test_a_bad_expression_is_refused_when_the_config_is_read(bad: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_config({"evaluation": {"match": bad}})
    said = str(refused.value)
    assert said.startswith(f'evaluation.match "{bad}" is not a regular expression (')
    assert "whole or last_number" in said
    assert "\n" not in said


def test_thinking_first_leaves_no_likelihood_to_choose_by() -> None:
    with pytest.raises(ConfigError, match=r"set evaluation.select to match"):
        build_config({"evaluation": {"prompting": {"style": "reflection"}}})
    build_config({"evaluation": {"prompting": {"style": "reflection"}, "select": "match", "match": "whole"}})
