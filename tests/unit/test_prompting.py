"""Wrapped prompts: what each style writes, where examples come from, what does not fit, what is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import byte_tokenizer, save_base
from tests.laws.lab import session as laboratory_session
from tests.unit.test_cli import call

from sparring.config import PromptingConfig
from sparring.configfile import build_config
from sparring.data.messages import Message
from sparring.errors import ConfigError
from sparring.evaluation.asking import ask, sheet_of
from sparring.evaluation.examine import examine
from sparring.evaluation.judge import judge
from sparring.evaluation.prompting.sheet import read_rules, shots
from sparring.evaluation.prompting.styles import STYLES, Material, Question, template
from sparring.generation.play import answer_limit
from sparring.job import identify, open_session, run_folder
from sparring.learning import fine_tune
from sparring.models.scoring import score
from sparring.preparing import prepare_data
from sparring.run import Run
from sparring.session import Session

CHAT = Question((Message("system", "Be kind."), Message("user", "Why?")), True)
TEXT = Question((Message("user", "2+2="),), False)
MATERIAL = Material("Rule one.", (("1+1=", "2"), ("1+2=", "3")))


def words(question: Question) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in question.messages]


# ---------------------------------------------------------------- what is written


def test_rules() -> None:
    ask_with = STYLES["rules"].first
    assert words(ask_with(CHAT, MATERIAL)) == [("system", "Be kind.\n\nRule one."), ("user", "Why?")]
    bare = Question(CHAT.messages[1:], True)
    assert words(ask_with(bare, MATERIAL)) == [("system", "Rule one."), ("user", "Why?")]
    assert words(ask_with(TEXT, MATERIAL)) == [("user", "Rule one.\n\n2+2=")]


def test_few_shot() -> None:
    ask_with = STYLES["few_shot"].first
    shown = [("user", "1+1="), ("assistant", "2"), ("user", "1+2="), ("assistant", "3")]
    assert words(ask_with(CHAT, MATERIAL)) == [("system", "Be kind."), *shown, ("user", "Why?")]
    assert words(ask_with(TEXT, MATERIAL)) == [("user", "1+1=2\n\n1+2=3\n\n2+2=")]
    braces = Material("", (("{answer}", "{question}"),))
    assert words(ask_with(TEXT, braces)) == [("user", "{answer}{question}\n\n2+2=")]


def test_chain_of_thought() -> None:
    style = STYLES["chain_of_thought"]
    asked = style.first(CHAT, MATERIAL)
    assert asked.messages[0] == CHAT.messages[0]
    assert asked.text.startswith("Why?\n\nThink step by step.")
    assert style.first(TEXT, MATERIAL).text.endswith('"Answer:".\n\n')
    assert style.final("2+2 is 4. Answer: 5, no.\nANSWER: 4 \n") == "4"
    assert style.final(" just 4 ") == "just 4"


def test_reflection() -> None:
    criticise, revise = STYLES["reflection"].then
    second = criticise(CHAT, "Because.")
    assert words(second)[2] == ("assistant", "Because.")
    assert words(second)[3][1].startswith("Criticise")
    third = revise(second, "It is short.")
    assert words(third)[4] == ("assistant", "It is short.")
    assert words(third)[5][1].startswith("Now write")
    plain = revise(criticise(TEXT, "5"), "Wrong.").text
    assert plain.startswith("2+2=5\n\nCriticise")
    assert "\n\nWrong.\n\nNow write" in plain


def test_every_style_has_its_file() -> None:
    for name in set(STYLES) - {"none"}:
        assert template(name)


def test_a_rule_sheet_of_ones_own(tmp_path: Path) -> None:
    sheet = tmp_path / "rules.txt"
    sheet.write_text("Only digits.\n")
    assert read_rules(PromptingConfig(style="rules", rules=str(sheet))) == "Only digits."
    with pytest.raises(ConfigError, match=r"evaluation\.prompting\.rules .* cannot be read"):
        read_rules(PromptingConfig(style="rules", rules=str(tmp_path / "none.txt")))


def test_the_rules_decide_the_result_by_their_content(tmp_path: Path) -> None:
    sheet = tmp_path / "rules.txt"

    def same(text: str, style: str) -> Any:
        sheet.write_text(text)
        prompting = {"style": style, "rules": str(sheet)}
        return identify(build_config({"evaluation": {"prompting": prompting}}, ['data.split="[:20]"'])).same

    assert same("a", "rules") != same("b", "rules")
    assert same("a", "none") == same("b", "none")
    assert str(tmp_path) not in json.dumps(same("a", "rules"))


# ---------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random chat model with room for a criticism."""
    folder = save_base(tmp_path_factory.mktemp("base"), "llama", byte_tokenizer(("<|endoftext|>",), bos=None))
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"max_position_embeddings": 1024}))
    return folder


@contextmanager
def chats(folder: Path, base: Path, style: str, *more: str) -> Iterator[tuple[Session, Any, Any]]:
    """(session, data, θ_0 = the base) on questions with answers."""
    rows = [{"question": f"How much is {i} and {i % 7}?", "answer": f"It is {i + i % 7}."} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"model.base={base}", f"data.train={folder / 'rows.jsonl'}", "sft.epochs=0", "threads=1",
        "data.eval_size=4", "data.test_size=5", f"evaluation.prompting.style={style}", "model.dtype=fp32",
        "generation.max_new_tokens=12", "evaluation.match=last_number", "evaluation.samples=2", *more,
    ]  # fmt: skip
    config = build_config({"name": style, "runs": str(folder)}, settings)
    with Run(run_folder(config)) as run:
        opened = open_session(config, run)
        data = opened.once("data", prepare_data)
        yield opened, data, opened.once("sft", fine_tune, data)


def measured(opened: Session, data: Any, start: Any) -> list[dict[str, Any]]:
    made = opened.once("test", examine, data, start, start, start)
    return [json.loads(line) for line in (made.folder / "best.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("style", ["rules", "few_shot"])
def test_likelihood_under_the_wrapped_prompt(style: str, chat_base: Path, tmp_path: Path) -> None:
    with chats(tmp_path, chat_base, style, "evaluation.prompting.shots=3") as (opened, data, start):
        rows, prompts = measured(opened, data, start), opened.prompts(data, "test")[:]
        examples = shots(opened.loaded.train, opened.config.evaluation.prompting)
        model = opened.ring.seat(opened.player(start))
        for row, prompt in zip(rows, prompts, strict=True):
            question = next(c for c in opened.loaded.test if c.messages[0].content in row["prompt"])
            turns = [Message("system", read_rules(PromptingConfig(style="rules")))] if style == "rules" else []
            for asked, answer in examples:
                turns += [Message("user", asked), Message("assistant", answer)]
            ids = opened.renderer.prompt((*turns, question.messages[0]), chat=True)
            assert row["prompt"] == opened.renderer.decode(prompt.prompt_ids)
            assert row["prompt_tokens"] == len(ids) > 2 * len(prompt.prompt_ids)
            logprob = score(model, opened.ring.base, [(ids, prompt.real_ids)], 4096)[0]
            assert row["nll"] == pytest.approx(-logprob, abs=1e-4)
        scores = opened.once("sft-scores", judge, data, start, start, None, label="θ_0", iteration=None)
        assert scores.facts["nll"] != scores.facts["plain_nll"]
        assert not [event for event in _events(opened) if event["event"] == "warning"]


def test_examples_come_from_training_data_alone(chat_base: Path, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with chats(folder, chat_base, "few_shot", f"seed={seed}", "data.eval_limit=4") as (opened, _, _):
            found.append(shots(opened.loaded.train, opened.config.evaluation.prompting))
            apart = {c.messages[0].content for c in (*opened.loaded.eval, *opened.loaded.test)}
            asked = [question for question, _ in found[-1]]
            assert len(set(asked)) == 4
            assert not apart & set(asked)
    every = {question for picks in found for question, _ in picks}
    assert len(every) < 8  # the same ones, but for what another seed holds out


@pytest.mark.parametrize("style", ["chain_of_thought", "reflection"])
def test_thinking_has_no_likelihood(style: str, chat_base: Path, tmp_path: Path) -> None:
    with chats(tmp_path, chat_base, style, "evaluation.select=match") as (opened, data, start):
        rows = measured(opened, data, start)
        assert all("nll" not in row and "exact_kl" not in row for row in rows)
        assert all(row["match"] is not None and row["kl_base"] == 0 for row in rows)
        event = next(event for event in _events(opened) if event["event"] == "test")
        assert event["nll"] is None
        assert event["ece"] is None
        scores = opened.once("sft-scores", judge, data, start, start, None, label="θ_0", iteration=None)
        assert scores.facts["nll"] is None
        assert scores.facts["plain_nll"] > 0
        assert scores.facts["match"] is not None


@pytest.mark.parametrize("style", ["chain_of_thought", "reflection"])
def test_a_run_of_one_player_that_thinks_first(
    style: str, chat_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a control arm: nothing is trained, so there is nothing to choose by a likelihood."""
    rows = [{"question": f"How much is {i}?", "answer": f"It is {i}."} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"model.base={chat_base}", f"data.train={tmp_path / 'rows.jsonl'}", "sft.epochs=0", "threads=1",
        "selfplay.iterations=0", "data.eval_size=4", "data.test_size=3", f"evaluation.prompting.style={style}",
        "generation.max_new_tokens=8", f"runs={tmp_path}", "name=r",
    ]  # fmt: skip
    assert call("run", *settings) == 0
    assert "Best player" in capsys.readouterr().out
    best = json.loads((tmp_path / "r" / "best" / "best.json").read_text())
    assert best["value"] is None
    assert best["why"] == "θ_0 (no SFT) is the only player"
    assert call("runs", "--runs", str(tmp_path)) == 0
    assert call("report", "r", "--runs", str(tmp_path)) == 0


def test_reflection_asks_about_the_players_own_answer(chat_base: Path, tmp_path: Path) -> None:
    with chats(tmp_path, chat_base, "reflection", "evaluation.select=match") as (opened, data, start):
        sheet, limit = sheet_of(opened, data, "test"), answer_limit(opened, data)
        told = ask(opened, opened.player(start), sheet, limit, 7, 1.0, 2)
        criticise, revise = STYLES["reflection"].then
        for row, question in zip(told, sheet.questions, strict=True):
            assert len(row) == 2
            for one in row:
                (first, said), (second, criticism), (third, revised) = one.turns
                asked = criticise(question, opened.renderer.decode(said.ids))
                assert second == opened.renderer.prompt(asked.messages, asked.chat)
                assert len(said.ids) <= limit < len(criticism.ids) + 1
                asked = revise(asked, opened.renderer.decode(criticism.ids))
                assert third == opened.renderer.prompt(asked.messages, asked.chat)
                assert one.last is revised
                everything = sum(map(len, (first, second, third, said.ids, criticism.ids, revised.ids)))
                assert one.beyond == everything - len(revised.ids)


def test_what_does_not_fit_is_said(chat_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "short"
    base.mkdir()
    for file in chat_base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    about = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(about | {"max_position_embeddings": 110}))
    with chats(tmp_path, base, "few_shot", "evaluation.prompting.shots=8") as (opened, data, start):
        rows = measured(opened, data, start)
        assert all(row["prompt_tokens"] + len(ids) <= 110 for row in rows for ids in row["ids"])
        assert all(row["prompt_tokens"] > 40 for row in rows)
        said = [event["text"] for event in _events(opened) if event["event"] == "warning"]
    assert any("5 of 5 prompts get fewer than evaluation.prompting.shots (8) examples" in text for text in said)
    with chats(tmp_path, base, "reflection", "evaluation.select=match") as (opened, data, start):
        measured(opened, data, start)
        said = [event["text"] for event in _events(opened) if event["event"] == "warning"]
    assert any("were not criticised and revised to the end" in text for text in said)


def test_plain_text_gets_plain_text(tmp_path: Path) -> None:
    settings = ["data.test_size=4", "evaluation.prompting.style=few_shot", "evaluation.prompting.shots=2"]
    with laboratory_session(tmp_path, *settings, "sft.epochs=0") as opened:
        data = opened.once("data", prepare_data)
        start = opened.once("sft", fine_tune, data)
        sheet = sheet_of(opened, data, "test")
        examples = shots(opened.loaded.train, opened.config.evaluation.prompting)
        for plain, asked in zip(sheet.plain, sheet.prompts, strict=True):
            text = "".join(f"{question}{answer}\n\n" for question, answer in examples)
            whole = text + opened.renderer.decode(plain.prompt_ids)
            assert asked.prompt_ids == opened.renderer.tokenizer(whole).input_ids
            assert asked.real_ids == plain.real_ids
            assert asked.key == plain.key
        rows = measured(opened, data, start)
        assert all(row["exact_kl"] >= 0 for row in rows)  # of the player as it is asked here


def _events(opened: Session) -> list[dict[str, Any]]:
    opened.run.gather()
    return [json.loads(line) for line in (opened.run.folder / "metrics.jsonl").read_text().splitlines()]
