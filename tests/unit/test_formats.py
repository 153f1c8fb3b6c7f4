"""Each row format, each fault a row can have, and the choice of a format from columns."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sparring.config import DataConfig
from sparring.data.formats import CANONICAL, FORMATS, BadRow, choose_format, marked_turns, renamed
from sparring.errors import ConfigError, DataError

AT = "rows.jsonl:12"
USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": "Hello"}


def parsed(name: str, row: dict[str, Any], **config: Any) -> tuple[list[tuple[str, str]], bool]:
    conversation = FORMATS[name].parse(row, AT, DataConfig(**config))
    assert conversation.source == AT
    return [(turn.role, turn.content) for turn in conversation.messages], conversation.chat


PLAIN = [("user", "Hi"), ("assistant", "Hello")]


@pytest.mark.parametrize(
    ("name", "row", "turns", "chat"),
    [
        ("messages", {"messages": [USER, BOT]}, PLAIN, True),
        (
            "messages",
            {"messages": [{"from": "Human", "value": "Hi"}, {"role": "model", "content": "Hello"}]},
            PLAIN,
            True,
        ),
        (
            "messages",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}],
                    },
                    BOT,
                ]
            },
            PLAIN,
            True,
        ),
        ("messages", {"messages": [USER, BOT, USER]}, PLAIN, True),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            PLAIN,
            True,
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "Hi"}], "system": "Be kind", "chosen": "Hello"},
            [("system", "Be kind"), *PLAIN],
            True,
        ),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Hello"},
                "rejected": {"from": "gpt", "value": "Bah"},
            },
            PLAIN,
            True,
        ),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": [{"from": "gpt", "value": "Hello"}],
            },
            PLAIN,
            True,
        ),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}, PLAIN, True),
        ("alpaca", {"instruction": "Hi", "input": None, "output": "Hello"}, PLAIN, True),
        (
            "alpaca",
            {
                "instruction": "Add",
                "input": "1, 2",
                "output": "3",
                "history": [["Hi", "Hello"]],
                "system": "Sums",
            },
            [("system", "Sums"), *PLAIN, ("user", "Add\n\n1, 2"), ("assistant", "3")],
            True,
        ),
        ("question_answer", {"question": "Hi", "answer": "Hello"}, PLAIN, True),
        ("input_output", {"input": "Hi", "output": "Hello"}, PLAIN, True),
        ("prompt_completion", {"prompt": "Hi", "completion": "Hello"}, PLAIN, False),
        ("prompt_completion", {"prompt": [USER], "completion": [BOT]}, PLAIN, True),
        ("prompt_completion", {"prompt": [USER], "completion": "Hello"}, PLAIN, True),
        (
            "spin",
            {"real": [USER, BOT], "generated": [USER, {"role": "assistant", "content": ""}]},
            PLAIN,
            True,
        ),
    ],
)
def test_each_format_is_read(name: str, row: dict[str, Any], turns: list[tuple[str, str]], chat: bool) -> None:
    assert parsed(name, row) == (turns, chat)


@pytest.mark.parametrize(
    ("prompt", "turns"),
    [
        ("### Human: Hi ### Assistant:", [("user", "Hi")]),
        ("\n### Human: Hi", [("user", "Hi")]),
        (
            "### Human: Hi ### Assistant: Hello ### Human: And? ### Assistant:",
            [*PLAIN, ("user", "And?")],
        ),
        ("Human: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:", [*PLAIN, ("user", "And?")]),
        ("User: Hi\nAssistant: Hello\nUser: An Assistant: what?", [*PLAIN, ("user", "An Assistant: what?")]),
        ("Human: a species of ape", []),
        ("What does ### Human: mean?", []),
        ("Say\nHuman: hi\nAssistant: ho", []),
        ("### Assistant: I begin ### Human: no", []),
    ],
)
def test_turns_marked_in_a_prompt(prompt: str, turns: list[tuple[str, str]]) -> None:
    assert [(turn.role, turn.content) for turn in marked_turns(prompt)] == turns
    expected = [*(turns or [("user", prompt)]), ("assistant", " kept ")]
    assert parsed("prompt_completion", {"prompt": prompt, "completion": " kept "}) == (expected, bool(turns))
    assert parsed("question_answer", {"question": prompt, "answer": " kept "}) == (expected, True)
    assert parsed("input_output", {"input": prompt, "output": " kept "}) == (expected, True)


@pytest.mark.parametrize("opening", [0.01, 0.25, 0.5, 0.99, 1, 3])
def test_opening_and_continuation_are_the_document(opening: float) -> None:
    draw = random.Random(0)
    for _ in range(200):
        words = ["".join(draw.choices("aé猫.", k=draw.randint(1, 5))) for _ in range(draw.randint(4, 30))]
        document = "".join(word + draw.choice([" ", "\n", "\t ", "\n\n"]) for word in words)
        ((_, first), (_, second)), chat = parsed("text", {"text": f"\n {document}"}, opening=opening)
        assert not chat
        assert first + second == document.strip()
        assert second[0].isspace()
        assert first == first.strip()
        assert second.strip()
        if opening >= 1:
            assert len(first.split()) == opening
        elif opening == 0.5:
            assert abs(len(first.split()) - len(words) / 2) <= 0.5


@pytest.mark.parametrize(("text", "opening"), [("", 0.5), ("word", 0.5), ("three short words", 3)])
def test_documents_too_short_to_cut(text: str, opening: float) -> None:
    with pytest.raises(BadRow, match=r"rows\.jsonl:12: too short to cut: \d words") as caught:
        parsed("text", {"text": text}, opening=opening)
    assert caught.value.reason == "too short to cut"


@pytest.mark.parametrize(
    ("name", "row", "reason", "found"),
    [
        ("messages", {"messages": [USER]}, "no assistant turn", "the turns are user"),
        ("messages", {"messages": []}, "no assistant turn", "none"),
        ("messages", {"messages": None}, "wrong type", "messages is null"),
        ("messages", {"messages": "[]"}, "wrong type", 'messages is "[]"'),
        ("messages", {"messages": ["Hi"]}, "wrong type", 'messages[0] is "Hi"'),
        ("messages", {"prompt": "Hi"}, "missing column", 'no "messages" among prompt'),
        (
            "messages",
            {"messages": [USER, {"role": "assistant", "content": None}]},
            "wrong type",
            "messages[1].content is null",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, BOT]},
            "wrong type",
            "only text parts",
        ),
        (
            "messages",
            {"messages": [USER, {"role": "tool", "content": "x"}]},
            "unknown role",
            'messages[1] has the role "tool"',
        ),
        ("messages", {"messages": [{"content": "x"}]}, "unknown role", "messages[0] has the role null"),
        ("messages", {"messages": [BOT, USER, BOT]}, "first turn is not the user's", "it is assistant's"),
        ("messages", {"messages": [USER, USER, BOT]}, "two turns of one role", "turns 1 and 2 are user's"),
        (
            "messages",
            {"messages": [USER, BOT, BOT]},
            "two turns of one role",
            "turns 2 and 3 are assistant's",
        ),
        (
            "messages",
            {"messages": [USER, {"role": "system", "content": "x"}, BOT]},
            "late system turn",
            "turn 2",
        ),
        ("question_answer", {"question": "Hi", "answer": True}, "wrong type", "answer is true"),
        ("question_answer", {"question": "Hi", "answer": None}, "wrong type", "answer is null"),
        ("question_answer", {"question": 3.5, "answer": "x"}, "wrong type", "question is 3.5"),
        ("question_answer", {"question": "Hi", "answer": " \n"}, "empty answer", '" \\n"'),
        ("question_answer", {"question": " ", "answer": "x"}, "empty prompt", 'the user turn is " "'),
        ("alpaca", {"instruction": "Hi", "input": 7, "output": "x"}, "wrong type", "input is 7"),
        (
            "alpaca",
            {"instruction": "Hi", "output": "x", "history": [["a"]]},
            "wrong type",
            "history[0] holds 1",
        ),
        ("prompt_completion", {"prompt": 1, "completion": "x"}, "wrong type", "prompt is 1"),
        (
            "prompt_completion",
            {"prompt": [USER], "completion": 1},
            "wrong type",
            "completion[0].content is 1",
        ),
        ("sharegpt", {"conversations": [BOT], "chosen": 4}, "wrong type", "chosen[0] is 4"),
        ("text", {"text": None}, "wrong type", "text is null"),
        (
            "prompt_completion",
            {"prompt": "### Human: Hi ### Assistant: Well,", "completion": "hello"},
            "two turns of one role",
            "turns 2 and 3",
        ),
    ],
)
def test_each_fault_is_named(name: str, row: dict[str, Any], reason: str, found: str) -> None:
    with pytest.raises(DataError) as caught:
        parsed(name, row)
    assert isinstance(caught.value, BadRow)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{AT}: {reason}: ")
    assert found in str(caught.value)
    assert "data.bad_rows" in str(caught.value)


def test_render_overrides_the_format() -> None:
    assert parsed("question_answer", {"question": "Hi", "answer": "Hello"}, render="text") == (PLAIN, False)
    assert parsed("prompt_completion", {"prompt": "Hi", "completion": "Hello"}, render="chat") == (
        PLAIN,
        True,
    )
    for messages in ([USER, BOT, USER, BOT], [{"role": "system", "content": "s"}, USER, BOT]):
        with pytest.raises(BadRow, match=r"rows\.jsonl:12: not plain text: the turns are (user|system)"):
            parsed("messages", {"messages": messages}, render="text")


def test_system_is_inserted_for_chat_rows_that_have_none() -> None:
    told = [("system", "Be kind"), *PLAIN]
    assert parsed("messages", {"messages": [USER, BOT]}, system="Be kind") == (told, True)
    own = {"messages": [{"role": "system", "content": "Be brief"}, USER, BOT]}
    assert parsed("messages", own, system="Be kind")[0][0] == ("system", "Be brief")
    assert parsed("messages", {"messages": [USER, BOT], "system": "Be brief"}, system="Be kind")[0][0] == (
        "system",
        "Be brief",
    )
    assert parsed("prompt_completion", {"prompt": "Hi", "completion": "Hello"}, system="Be kind") == (
        PLAIN,
        False,
    )
    assert parsed("messages", {"messages": [USER, BOT], "system": None})[0] == PLAIN


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ("messages", "messages"),
        ("prompt prompt_id messages", "messages"),
        ("prompt chosen rejected messages", "messages"),
        ("messages text", "messages"),
        ("conversations system", "sharegpt"),
        ("conversations chosen rejected", "sharegpt"),
        ("instruction input output", "alpaca"),
        ("instruction input output answer", "alpaca"),
        ("instruction output", "alpaca"),
        ("question answer id", "question_answer"),
        ("input output", "input_output"),
        ("input output prompt text category", "input_output"),
        ("prompt completion", "prompt_completion"),
        ("text", "text"),
        ("real generated", "spin"),
    ],
)
def test_the_format_follows_from_the_columns(columns: str, name: str) -> None:
    assert choose_format(set(columns.split()), DataConfig(), "f.jsonl") is FORMATS[name]


def test_columns_map_ours_to_theirs() -> None:
    theirs = {"input", "output", "prompt", "text"}
    config = DataConfig(columns={"prompt": "input", "completion": "output"})
    assert choose_format(theirs, config, "f") is FORMATS["prompt_completion"]
    assert choose_format({"a", "b"}, DataConfig(columns={"text": "b"}), "f") is FORMATS["text"]
    row = {"input": 1, "output": 2, "prompt": 3, "lang": 4}
    assert renamed(row, config.columns) == {"prompt": 1, "completion": 2, "lang": 4}
    assert renamed({"question": 1, "answer": 2}, {"question": "answer", "answer": "question"}) == {
        "question": 2,
        "answer": 1,
    }


@pytest.mark.parametrize(
    ("columns", "config", "error", "said"),
    [
        (
            "turns id",
            {},
            DataError,
            ["f.jsonl has the columns id, turns", "fit no format", "alpaca: instruction"],
        ),
        (
            "messages conversations",
            {},
            DataError,
            ["fit several formats", "set data.format to one of messages, sharegpt"],
        ),
        (
            "question answer",
            {"format": "alpaca"},
            DataError,
            ["not the format alpaca", "instruction, output"],
        ),
        (
            "text",
            {"columns": {"promt": "text"}},
            ConfigError,
            ['"promt" is not known', 'did you mean "prompt"'],
        ),
        (
            "story id",
            {"columns": {"text": "stroy"}},
            DataError,
            ['f.jsonl has no column "stroy"', 'did you mean "story"', "(known: id, story)"],
        ),
        ("question answer", {"columns": {"prompt": "question"}}, DataError, ["data.columns for prompt"]),
    ],
)
def test_what_fits_no_one_format(columns: str, config: dict[str, Any], error: type[Exception], said: list[str]) -> None:
    with pytest.raises(error) as caught:
        choose_format(set(columns.split()), DataConfig(**config), "f.jsonl")
    for part in said:
        assert part in str(caught.value)


def test_canonical_names_are_frozen() -> None:
    names = "messages conversations instruction input output question answer prompt completion text real system"
    assert set(names.split()) == CANONICAL
