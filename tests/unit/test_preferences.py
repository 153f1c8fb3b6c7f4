"""Preference pairs: each format, each fault a row can have, ties, votes, the pairs of a run, and the config."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import CHATML, byte_tokenizer, renderer_of

from sparring.config import NEUTRAL, DataConfig, decisive
from sparring.config_dpo import DPOConfig, reference_of
from sparring.config_selfplay import SelfPlayConfig
from sparring.configfile import build_config, read_config
from sparring.data.comparisons import PREFERENCES
from sparring.data.formats import BadRow, choose_format
from sparring.data.load import Loaded, load, load_all
from sparring.data.messages import Conversation
from sparring.data.preferences import Preferences, prepare_preferences
from sparring.dpo import settled_dpo
from sparring.errors import ConfigError, DataError
from sparring.laboratory import dpo_config, reward_config

SHARED = Path(os.environ.get("SPARRING_SHARED", Path(__file__).parents[3] / "shared")) / "data"
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
AT = "rows.jsonl:12"
ASK = {"role": "user", "content": "Hi"}
GOOD, BAD = {"role": "assistant", "content": "Hello"}, {"role": "assistant", "content": "Go away"}
SAID = [("user", "Hi"), ("assistant", "Hello")]
Row = dict[str, Any]


def parsed(row: Row, **config: Any) -> Conversation:
    """The row in the format that its columns choose."""
    data = DataConfig(**config)
    entry = choose_format(set(row), data, "rows.jsonl", PREFERENCES)
    return entry.parse(row, AT, data)


def sides(row: Row, **config: Any) -> tuple[list[tuple[str, str]], str, bool]:
    found = parsed(row, **config)
    assert found.other is not None
    return [(turn.role, turn.content) for turn in found.messages], found.other.rejected, found.chat


def judged(votes: tuple[int, int, int], **more: Any) -> Row:
    row: Row = {"instruction": "Hi", "input": "", "response1": "Hello", "response2": "Go away"}
    return row | {f"annotator{i}": vote for i, vote in enumerate(votes, 1)} | more


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("row", "turns", "chat"),
    [
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, SAID, True),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, SAID, True),
        ({"prompt": "Hi", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, SAID, True),
        ({"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]}, SAID, True),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}, SAID, False),
        ({"question": "Hi", "chosen": "Hello", "rejected": "Go away", "system": None}, SAID, True),
        ({"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go away"}, SAID, True),
        (
            {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello"},
             "rejected": {"from": "gpt", "value": "Go away"}},
            SAID, True,
        ),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
            SAID, True,
        ),
        ({"real": [ASK, GOOD], "generated": [ASK, BAD]}, SAID, True),
    ],
    ids=["explicit", "implicit", "both", "prompt", "texts", "question", "instruction", "sharegpt", "marked", "spin"],
)  # fmt: skip
def test_formats(row: Row, turns: list[tuple[str, str]], chat: bool) -> None:
    assert sides(row) == (turns, "Go away", chat)


def test_texts_that_begin_alike_share_their_prompt_up_to_a_word() -> None:
    row = {"chosen": "Once there was a cat", "rejected": "Once there was a car"}
    assert sides(row) == ([("user", "Once there was a"), ("assistant", " cat")], " car", False)


def test_system_messages_come_before_both() -> None:
    row = {"system": "Be kind", "question": "Hi", "chosen": "Hello", "rejected": "Go away"}
    assert sides(row)[0] == [("system", "Be kind"), *SAID]


def test_columns_have_other_names() -> None:
    row = {"q": "Hi", "a": "Hello", "b": "Go away"}
    columns = {"question": "q", "chosen": "a", "rejected": "b"}
    entry = choose_format(set(row), DataConfig(columns=columns), "rows.jsonl", PREFERENCES)
    assert entry.name == "question_answer"


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Hello "}, 'equal answers: chosen and rejected are both "Hel'),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": " "}, 'empty answer: rejected is " ", and both sides need'),
        ({"prompt": "Hi", "chosen": "", "rejected": "Hello"}, 'empty answer: chosen is ""'),
        ({"prompt": " ", "chosen": "Hello", "rejected": "Go"}, 'empty prompt: the user turn is " "'),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": True}, "wrong type: rejected is true, and must be text"),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": [BAD]}, "wrong type: chosen is .*both must be text"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [ASK]}, "answer not the assistant's: .*rejected is user's"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": []}, "empty answer: rejected holds no message"),
        ({"chosen": [ASK, GOOD], "rejected": [{"role": "user", "content": "Ho"}, BAD]},
         'prompts differ: .*user "Hi" against user "Ho"'),
        ({"chosen": [ASK, GOOD], "rejected": [BAD]}, "prompts differ: .*1 turns against 0"),
        ({"prompt": "Ho", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, 'prompts differ: prompt .*"Ho" against'),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no prompt: chosen and rejected hold an answer each"),
        ({"chosen": "Hello", "rejected": "Go away"}, "no prompt: there is no prompt, and .* do not begin alike"),
        ({"conversations": [ASK], "chosen": {"from": "human", "value": "Hello"}, "rejected": BAD},
         "answer not the assistant's: the last turn of chosen is user's"),
        ({"conversations": [ASK], "chosen": GOOD, "rejected": [ASK, BAD]}, "prompts differ: rejected holds 2 turns"),
        (judged((1, 1, 3)), "unknown vote: annotator3 is 3, and must be 1, 2, or 0"),
        (judged((1, 1, 1), response1=True), "wrong type: response1 is true, and must be text"),
        (judged((2, 2, 2), response1=""), 'empty answer: response1 is ""'),
    ],
)  # fmt: skip
def test_faults_are_named_with_their_place(row: Row, said: str) -> None:
    with pytest.raises(BadRow, match=rf"^rows\.jsonl:12: {said}.*; correct the row, or set data\.bad_rows: skip$"):
        parsed(row)


def test_a_missing_column_is_said_before_any_row() -> None:
    with pytest.raises(DataError, match=r"columns chosen, prompt, which fit no format.*chosen, rejected"):
        parsed({"prompt": "Hi", "chosen": "Hello"})
    with pytest.raises(BadRow, match=r'missing column: no "rejected" among prompt, chosen'):
        PREFERENCES["chosen_rejected"].parse({"prompt": "Hi", "chosen": "Hello"}, AT, DataConfig())
    with pytest.raises(ConfigError, match=r'data\.format "text" is not for this; give auto, or one of alpaca'):
        parsed({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, format="text")
    with pytest.raises(ConfigError, match=r'data\.format "comparison" is not for this'):
        choose_format({"text"}, DataConfig(format="comparison"), "f")


# ---------------------------------------------------------------- people


@pytest.mark.parametrize(
    ("votes", "chosen", "kept", "tie"),
    [
        ((1, 1, 2), "Hello", (1.0, 1.0, 0.0), False),
        ((2, 0, 2), "Go away", (1.0, 0.5, 1.0), False),
        ((0, 0, 2), "Hello", (0.5, 0.5, 0.0), True),
        ((0, 1, 2), "Hello", (0.5, 1.0, 0.0), True),
    ],
)
def test_the_majority_of_three_chooses(votes: Any, chosen: str, kept: Any, tie: bool) -> None:
    found = parsed(judged(votes))
    assert found.other is not None
    assert (found.messages[-1].content, found.other.votes, found.other.tie) == (chosen, kept, tie)


def written(file: Path, rows: list[Row]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read(file: str, template: str = CHATML, **config: Any) -> Preferences:
    """Every pair of a file; nothing is held out."""
    settings = DataConfig(train=file, **config)
    made, counts, bad = load_all(settings)
    loaded, renderer = (
        Loaded(made, [], counts, "", "", [], bad, True),
        renderer_of(byte_tokenizer(MARKS, template=template)),
    )
    sides, all_counts = prepare_preferences(loaded, renderer, settings, 2**20)
    return replace(sides["train"], counts={**all_counts, **sides["train"].counts})


def test_ties_need_a_rule(tmp_path: Path) -> None:
    rows = [judged((1, 1, 1)), judged((0, 0, 1), instruction="Ho"), judged((2, 1, 2))]
    file = written(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"^a\.jsonl:2: a tie: of 3 people, 2 chose neither answer, and 1 of 3 rows"):
        read(file)
    with pytest.raises(DataError, match="a tie"):
        read(file, bad_rows="skip")  # a tie is no fault of the row
    dropped = read(file, ties="drop")
    assert [row.weight for row in dropped.rows] == [1.0, 1.0]
    assert dropped.counts["ties: drop"] == 1
    halves = read(file, ties="half").rows
    assert [row.weight for row in halves] == [1.0, 0.5, 0.5, 1.0]
    assert halves[1].chosen_ids == halves[2].rejected_ids
    assert (halves[1].votes, halves[2].votes) == ([0.5, 0.5, 1.0], [0.5, 0.5, 0.0])
    with pytest.raises(DataError, match=r"b\.jsonl holds nothing but ties"):
        read(written(tmp_path / "b.jsonl", rows[1:2]), ties="drop")


def test_bad_rows_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [judged((1, 1, 1)), judged((1, 1, 1), response2=""), judged((1, 1, 1), response1=True)]
    found = read(written(tmp_path / "a.jsonl", rows), bad_rows="skip")
    assert found.messages == [
        'a.jsonl:2: empty answer: response2 is "", and both sides need a text',
        "a.jsonl:3: wrong type: response1 is true, and must be text",
    ]
    assert found.counts["bad: empty answer"] == found.counts["bad: wrong type"] == len(found.rows) == 1


def test_a_pair_that_the_template_does_not_render_is_a_bad_row(tmp_path: Path) -> None:
    """One answer makes the template write something else before it."""
    odd = "{% if messages[-1].content == 'Odd' %}?{% endif %}" + CHATML
    rows = [{"question": "Hi", "chosen": "Hello", "rejected": said} for said in ("Go", "Odd", "Away")]
    file = written(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        DataError, match=r"^a\.jsonl:2: the chat template renders the answered conversation differently"
    ):
        read(file, odd)
    found = read(file, odd, bad_rows="skip")
    assert len(found.rows) == 2
    assert found.counts["bad: not rendered"] == len(found.messages) == 1
    assert found.messages[0].startswith("a.jsonl:2: the chat template renders")
    with pytest.raises(
        DataError, match=r"none of the train pairs .*1 are not rendered, the last: b\.jsonl:1: the chat"
    ):
        read(written(tmp_path / "b.jsonl", rows[1:2]), odd, bad_rows="skip")


def test_the_laboratorys_plant_is_read_as_pairs() -> None:
    """Of the embedded configs of both verbs that learn from pairs."""
    for path in (reward_config(), dpo_config()):
        config = read_config(path, [])
        found = load(config.data, config.seed, preferences=True)
        assert len(found.train) == 2400
        assert len(found.eval) == config.data.eval_limit
        assert all(row.other is not None for row in found.train)


def test_votes_beside_chosen_and_rejected() -> None:
    row = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}
    for votes, tie in (([1, 0, 1], False), ([1, 0], True), ([0.5, 0.5, 1], True), ([], False)):
        other = parsed({**row, "votes": votes}).other
        assert other is not None
        assert (other.votes, other.tie) == (tuple(map(float, votes)), tie)
    number = parsed({**row, "votes": 12}).other  # something else by that name
    assert number is not None
    assert number.votes == ()
    with pytest.raises(DataError, match="unknown vote: votes hold 2, and each must be"):
        parsed({**row, "votes": [1, 2]})
    with pytest.raises(DataError, match=r"votes against chosen: .*most people chose the rejected answer"):
        parsed({**row, "votes": [0, 0, 1]})


# ---------------------------------------------------------------- tokens


def test_both_answers_stand_behind_one_prompt(tmp_path: Path) -> None:
    renderer = renderer_of(byte_tokenizer(MARKS, template=CHATML))
    (row,) = read(written(tmp_path / "a.jsonl", [{"question": "Hi", "chosen": "Hello", "rejected": "Go"}])).rows
    assert renderer.decode(row.prompt_ids).startswith("user\nHi")
    assert [renderer.decode(ids) for ids in (row.chosen_ids, row.rejected_ids)] == ["Hello", "Go"]
    assert row.chosen_ids[-1] == row.rejected_ids[-1] == renderer.turn_end
    assert (row.source, row.weight, row.votes) == ("a.jsonl:1", 1.0, [])


def test_a_pair_fits_with_both_sides_or_not_at_all(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "chosen": "abcdefgh" * k, "rejected": "xyz" * 9} for k in (1, 9)]
    file = written(tmp_path / "a.jsonl", rows)
    dropped = read(file, max_length=40)
    assert (dropped.counts["pairs"], dropped.counts["too_long"]) == (1, 1)
    cut = read(file, max_length=40, too_long="truncate")
    assert (cut.counts["pairs"], cut.counts["truncated"]) == (2, 1)
    with pytest.raises(DataError, match=r"none of the train pairs can be used: 2 do not fit 8 tokens"):
        read(file, max_length=8)
    alike = [{"prompt": "Hi", "chosen": "same words, then this", "rejected": "same words, then that"}]
    same = written(tmp_path / "b.jsonl", [*alike, {"prompt": "Ho", "chosen": "a", "rejected": "b"}])
    assert read(same, max_length=8, too_long="truncate").counts["identical"] == 1


def test_a_prompt_is_on_one_side_and_rejected_answers_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    rows = [{"question": f"q{i % 10}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(40)]
    config = DataConfig(train=written(tmp_path / "a.jsonl", rows), eval_size=3)
    loaded = load(config, 0, preferences=True)
    found, counts = prepare_preferences(loaded, renderer_of(byte_tokenizer(MARKS, template=CHATML)), config, 128)
    prompts = {side: {tuple(row.prompt_ids) for row in part.rows} for side, part in found.items()}
    assert len(prompts["eval"]) == 3
    assert not prompts["eval"] & prompts["train"]
    assert (counts["train_pairs"], counts["eval_pairs"]) == (28, 12)
    other = written(tmp_path / "b.jsonl", [row | {"rejected": f"{row['rejected']}!"} for row in rows])
    changed = load(config.model_copy(update={"train": other}), 0, preferences=True)
    assert changed.fingerprint != loaded.fingerprint


@pytest.mark.skipif(not SHARED.exists(), reason="needs real data")
def test_real_files() -> None:
    found = read(str(SHARED / "pandalm" / "testset-v1.json"), bad_rows="skip", ties="drop")
    assert found.counts["bad: empty answer"] == 54
    assert found.counts["bad: wrong type"] == 6
    assert found.messages[0].startswith("testset-v1.json[row 18]: empty answer: response1")
    assert len(found.rows) == 999 - 60 - found.counts["ties: drop"]
    assert {len(row.votes) for row in found.rows} == {3}
    assert len(read(str(SHARED / "preference_demo" / "dpo_en_demo.json")).rows) == 299


# ---------------------------------------------------------------- config


def test_new_keys_do_not_make_older_folders_others() -> None:
    assert NEUTRAL["dpo"] is True
    found = decisive(build_config({}))
    assert "dpo" not in found
    assert "ties" not in found["data"]


def test_dpo_is_one_iteration_of_self_play() -> None:
    config = settled_dpo(build_config({"dpo": {"beta": 0.3, "loss": "ipo", "stop_chosen_drop": 0.1}}))
    play = config.selfplay
    assert (play.iterations, play.beta, play.loss, play.reduction, play.previous) == (1, 0.3, "ipo", "mean", 0.0)
    assert (play.anchor, play.stop_real_drop, play.stop_nll_rise) == (0.0, 0.1, None)
    assert settled_dpo(config) == config
    plain = settled_dpo(build_config({"selfplay": {"beta": [1.0, 2.0], "loss": "hinge", "lr": 1.0}}))
    assert (plain.selfplay.loss, plain.selfplay.reduction, plain.selfplay.lr) == ("logistic", "sum", 1e-5)
    prefix = settled_dpo(build_config({"method": "prefix"})).selfplay.lr
    assert prefix == build_config({"method": "prefix"}).selfplay.lr != 1e-5


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, r"dpo\.label_smoothing is for the sigmoid loss, not for ipo"),
        ({"label_smoothing": 0.5}, "dpo.label_smoothing"),
        ({"beta": 0}, "dpo.beta"),
        ({"betta": 1}, r"betta.*beta"),
    ],
)
def test_what_dpo_refuses(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_config({"dpo": section})


def test_ipo_in_self_play_needs_beta() -> None:
    assert SelfPlayConfig(loss="ipo").loss == "ipo"
    with pytest.raises(ConfigError, match=r"selfplay\.loss ipo divides by selfplay\.beta, which is 0 in iteration 0"):
        build_config({"selfplay": {"loss": "ipo", "beta": 0}})


def test_what_the_reference_is() -> None:
    assert "the player in runs/a/1/player, its adapter on: not the base under it" in reference_of(
        "runs/a/1/player", 1, "b"
    )
    assert "the base fine-tuned on the chosen answers" in reference_of(None, 1, "b")
    assert "the base itself, b (sft.epochs is 0)" in reference_of(None, 0, "b")
    assert DPOConfig().as_selfplay()["hold"] == "continue"
