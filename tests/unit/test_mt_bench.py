"""MT-bench: FastChat's layout, its temperatures, both turns, and what is refused or cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import base_of, byte_tokenizer, ring_of, save_base
from tests.unit.test_cli import call, refused

from sparring.config import GenerationConfig
from sparring.data.messages import Message
from sparring.errors import DataError
from sparring.evaluation import mt_bench
from sparring.evaluation.mt_bench import Bench, Question, read_questions
from sparring.models.players import Player

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["A cat?", "A dog?"]},
    {"question_id": 101, "category": "reasoning", "turns": ["1 or 2?", "And 3?"], "reference": ["1"]},
    {"question_id": 141, "category": "stem", "turns": ["Why?"]},
]


def question_file(folder: Path) -> Path:
    path = folder / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return path


def bench_of(**changes: Any) -> Bench:
    base = base_of("llama")
    return Bench(ring_of(base), Player.untrained(base), GenerationConfig(), **{"limit": 6, **changes})


def test_temperatures_are_fastchats_and_the_second_turn_sees_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, list[int]]] = []
    plain = mt_bench.LocalGenerator

    def noted(model: Any, base: Any, settings: GenerationConfig) -> Any:
        generator = plain(model, base, settings)

        def answer(prompts: Any, keys: Any, limit: int) -> Any:
            seen.extend((settings.temperature, prompt) for prompt in prompts)
            return generator(prompts, keys, limit)

        return answer

    monkeypatch.setattr(mt_bench, "LocalGenerator", noted)
    bench = bench_of()
    questions = read_questions(question_file(tmp_path))
    answers = bench(questions)
    assert [len(turns) for turns in answers] == [2, 2, 1]
    renderer = bench.ring.base.renderer
    expected = []
    for question, turns, temperature in zip(questions, answers, (0.7, 0.0, 0.1), strict=True):
        said: tuple[Message, ...] = ()
        for text, reply in zip(question.turns, turns, strict=True):
            said = (*said, Message("user", text))
            expected.append((temperature, renderer.prompt(said, chat=True)))
            said = (*said, Message("assistant", reply))
    assert sorted(seen) == sorted(expected)
    assert bench_of()(questions) == answers  # keyed random numbers


def test_a_conversation_that_fills_the_context_is_cut_and_counted() -> None:
    bench = bench_of(limit=200)
    (turns,) = bench([Question(1, "math", ["a " * 300, "b", "c"])])
    assert len(turns) == 3
    assert bench.shortened == 3
    assert all(turns)
    bench = bench_of(limit=1)
    (turns,) = bench([Question(1, "math", ["a", "b"])])
    assert (bench.cut, bench.shortened) == (2, 0)


@pytest.mark.parametrize("content", ["", "{", '{"question_id": 1}\n', "[1]\n", '{"question_id": "x"}\n'])
def test_a_bad_question_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"give FastChat's question\.jsonl"):
        read_questions(path)
    with pytest.raises(DataError):
        read_questions(tmp_path / "nowhere.jsonl")


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base(tmp_path / "base", "llama", byte_tokenizer())
    rows = [{"question": f"How much is {i}?", "answer": f"It is {i}."} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"model.base={base}", f"data.train={tmp_path / 'rows.jsonl'}", f"runs={tmp_path}", "name=r"]
    assert call("run", *settings, "sft.epochs=0", "selfplay.iterations=0", "threads=1", "data.eval_size=4") == 0
    words = ["mt-bench", "r", "--runs", str(tmp_path), "--questions", str(question_file(tmp_path))]
    more = ["--limit", "2", "--max-new-tokens", "5", "--model-id", "me"]
    capsys.readouterr()
    assert call(*words, *more) == 0
    path = tmp_path / "r" / "data" / "mt_bench" / "model_answer" / "me.jsonl"
    assert str(path) in capsys.readouterr().out
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(row) for row in answers] == [{"question_id", "answer_id", "model_id", "choices", "tstamp"}] * 2
    assert [row["question_id"] for row in answers] == [81, 101]
    assert answers[0]["model_id"] == "me"
    assert answers[0]["choices"][0]["index"] == 0
    assert [len(row["choices"][0]["turns"]) for row in answers] == [2, 2]
    kept = path.read_bytes()
    assert "exists already" in refused(capsys, *words, *more)
    assert path.read_bytes() == kept
    assert "without slashes" in refused(capsys, *words, "--model-id", "a/b")
    assert call("run", *settings, "sft.epochs=0", "selfplay.iterations=0", "threads=1", "data.eval_size=4") == 0
