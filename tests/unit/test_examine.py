"""The test phase against plain computations, temperature, and the choice by matches."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import base_of, plain_logprobs, random_rows
from tests.laws.lab import Game, session

from sparring.data.pairs import Prompt
from sparring.evaluation.answers import bleu, repetition
from sparring.evaluation.choose import choose
from sparring.evaluation.examine import examine, means_of
from sparring.evaluation.judge import judge, read_judged
from sparring.evaluation.metrics import METRICS
from sparring.laboratory import world
from sparring.models.players import Player
from sparring.models.scoring import score
from sparring.run import Phase

Rows = list[dict[str, Any]]
SETTINGS = ["data.test_size=12", "evaluation.samples=2", "evaluation.match=last_number"]


def read(phase: Phase, which: str) -> Rows:
    return [json.loads(line) for line in (phase.folder / f"{which}.jsonl").read_text().splitlines()]


def tempered(model: Any, row: tuple[list[int], list[int]], temperature: float) -> torch.Tensor:
    """log p of each answer token with the final logits divided, by one plain forward pass."""
    prompt, answer = row
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].double()
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return torch.stack([logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(answer)])


@pytest.fixture(scope="module", params=[1.0, 0.7])
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """(game, temperature, test phase, last player), one iteration of self-play done."""
    folder = tmp_path_factory.mktemp("examine")
    with session(folder, *SETTINGS, f"evaluation.temperature={request.param}") as opened:
        game = Game(opened)
        _, _, player = game.iteration(game.start, 0)
        test = opened.once("test", examine, game.data, game.start, game.start, player)
        yield game, request.param, test, player


def prompts_of(game: Game) -> list[Prompt]:
    found: list[Prompt] = game.session.prompts(game.data, "test")[:]
    return found


def test_rows_against_plain_computations(played: Any) -> None:
    game, temperature, test, last = played
    ring = game.session.ring
    rows, prompts = read(test, "last"), prompts_of(game)
    assert [row["key"] for row in rows] == [prompt.key for prompt in prompts]

    def told(model: Any, at: float) -> list[float]:
        return [
            sum(float(tempered(model, (p.prompt_ids, ids), at).sum()) for ids in row["ids"]) / 2
            for p, row in zip(prompts, rows, strict=True)
        ]

    base = told(ring.seat(Player.untrained(ring.base)), 1.0)
    start = told(ring.seat(game.session.player(game.start)), 1.0)
    model = ring.seat(game.session.player(last))
    own = told(model, temperature)
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        real = -float(tempered(model, (prompt.prompt_ids, prompt.real_ids), temperature).sum())
        assert row["nll"] == pytest.approx(real, abs=1e-4)
        assert row["tokens"] == len(prompt.real_ids)
        assert row["kl_base"] == pytest.approx(own[index] - base[index], abs=1e-4)
        assert row["kl_start"] == pytest.approx(own[index] - start[index], abs=1e-4)
        assert row["length"] == sum(map(len, row["ids"])) / 2
        assert row["repetition"] == sum(map(repetition, row["ids"])) / 2
        assert row["prompt_tokens"] == len(prompt.prompt_ids)
        right = row["real"][-1]
        texts = [game.session.renderer.decode(ids) for ids in row["ids"]]
        assert row["answer"] == texts[0]
        assert row["match"] == sum(text[-1:] == right for text in texts) / 2
        assert row["match_greedy"] == (row["greedy"][-1:] == right)


def test_exact_measures_per_prompt_at_a_temperature(played: Any) -> None:
    game, temperature, test, last = played
    model = game.session.ring.seat(game.session.player(last))
    tokenizer = game.session.renderer.tokenizer
    for row in read(test, "last")[:4]:
        mass = 0.0
        divergence = 0.0
        for text, p in world.answers(row["prompt"]).items():
            prompt = tokenizer(row["prompt"]).input_ids
            answer = [*tokenizer(row["prompt"] + text).input_ids[len(prompt) :], tokenizer.eos_token_id]
            logprob = float(tempered(model, (prompt, answer), temperature).sum())
            mass += math.exp(logprob)
            divergence += p * (math.log(p) - logprob)
        assert row["valid_mass"] == pytest.approx(mass, abs=1e-5)
        assert row["exact_kl"] == pytest.approx(divergence, abs=1e-4)
        assert row["template_kl"] == pytest.approx(divergence + math.log(mass), abs=1e-4)


def test_greedy_answers_are_the_likeliest_tokens(played: Any) -> None:
    game, _, test, last = played
    model = game.session.ring.seat(game.session.player(last))
    for row, prompt in zip(read(test, "last")[:4], prompts_of(game), strict=False):
        ids = list(prompt.prompt_ids)
        for _ in range(16):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == game.session.renderer.tokenizer.eos_token_id:
                break
        assert row["greedy"] == game.session.renderer.decode(ids[len(prompt.prompt_ids) :])


def test_events_hold_every_yardstick(played: Any) -> None:
    _, temperature, test, _ = played
    lines = [json.loads(line) for line in (test.folder / "metrics.jsonl").read_text().splitlines()]
    events = {line["which"]: line for line in lines if line["event"] == "test"}
    assert {which: event["label"] for which, event in events.items()} == {"best": "θ_0 (SFT)", "last": "θ_1"}
    for which, event in events.items():
        rows = read(test, which)
        assert set(METRICS) <= set(event)
        assert [name for name in METRICS if event[name] is None] == ["reward"]  # nothing scores here
        assert event["n"] == 12
        assert event["nll"] == pytest.approx(sum(r["nll"] for r in rows) / sum(r["tokens"] for r in rows))
        assert event["end_rate"] == sum(r["ended"] for r in rows) / 12
        assert 0 <= event["ece"] <= 1
        firsts = [row["ids"][0] for row in rows]
        plain = sum(bleu(ids, firsts[:i] + firsts[i + 1 :]) for i, ids in enumerate(firsts)) / 12
        assert event["self_bleu"] == pytest.approx(plain)
    assert (events["best"]["kl_start"] == 0) == (temperature == 1)  # the same player, but at another temperature
    assert test.facts["sampled"] > 0
    assert test.facts["flops"] > 0


def test_one_file_when_the_best_is_the_last(played: Any) -> None:
    game, _, test, _ = played
    again = game.session.once("test-again", examine, game.data, game.start, game.start, game.start)
    assert [path.name for path in again.folder.glob("*.jsonl")].count("last.jsonl") == 0
    assert (again.folder / "best.jsonl").read_bytes() == (test.folder / "best.jsonl").read_bytes()


def test_a_missing_number_gives_no_mean() -> None:
    rows: Rows = [{"nll": 2.0, "tokens": 4, "match": 1.0}, {"nll": 4.0, "tokens": 2}]
    assert means_of(rows)["nll"] == 1.0
    assert means_of(rows)["match"] is None


# ---------------------------------------------------------------- temperature


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite", "gpt2"])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_scores_at_a_temperature(name: str, temperature: float) -> None:
    """Behind soft caps and factors: the final logits are divided."""
    base = base_of(name)
    rows = random_rows(base.vocabulary, count=5)
    got = score(base.model, base.at(temperature), rows, 4096)
    expected = [float(tempered(base.model, row, temperature).sum()) for row in rows]
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-3)
    ones = [float(plain_logprobs(base.model, row).sum()) for row in rows]
    assert got != pytest.approx(ones, rel=1e-3)


def test_temperature_one_changes_no_bit() -> None:
    base = base_of("gemma2")
    rows = random_rows(base.vocabulary, count=5)
    assert score(base.model, base.at(1.0), rows, 4096) == score(base.model, base, rows, 4096)


def test_judging_at_a_temperature_keeps_the_plain_nll_for_learning(tmp_path: Path) -> None:
    found = {}
    for temperature in (1, 2):
        with session(tmp_path, f"evaluation.temperature={temperature}", name=f"t{temperature}") as opened:
            game = Game(opened)
            found[temperature] = game.scores.facts
            model = opened.ring.seat(opened.player(game.start))
            for row in read_judged(game.scores.folder)[:3]:
                prompt = next(p for p in opened.prompts(game.data, "eval")[:] if p.key == row["key"])
                for ids, logprob in zip(row["ids"], row["logprobs"], strict=True):
                    plain = float(tempered(model, (prompt.prompt_ids, ids), temperature).sum())
                    assert logprob == pytest.approx(plain, abs=1e-4)
    assert found[1]["plain_nll"] == found[1]["nll"]
    assert found[2]["plain_nll"] == found[1]["nll"]
    assert found[2]["nll"] > found[1]["nll"] + 0.01


# ---------------------------------------------------------------- choosing by matches


def test_choosing_by_matches_takes_the_highest(tmp_path: Path) -> None:
    with session(tmp_path, "evaluation.match=whole", "evaluation.select=match", "evaluation.samples=3") as opened:
        game = Game(opened)
        judged = read_judged(game.scores.folder)
        texts = [[opened.renderer.decode(ids) for ids in row["ids"]] for row in judged]
        shares = [sum(t == row["real"] for t in said) / 3 for row, said in zip(judged, texts, strict=True)]
        assert game.scores.facts["match"] == pytest.approx(sum(shares) / len(shares))
        _, _, player = game.iteration(game.start, 0)
        later = opened.once("0/scores", judge, game.data, player, game.start, game.scores, label="θ_1", iteration=0)
        best = opened.once("best", choose, game.scores, later)
        content = json.loads((best.folder / "best.json").read_text())
    values = {"sft": game.scores.facts["match"], "0": later.facts["match"]}
    assert content["values"] == values
    assert content["value"] == max(values.values())
    assert "highest share of answers that match" in content["why"]
