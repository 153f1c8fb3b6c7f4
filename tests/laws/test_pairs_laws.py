"""Laws 1–6, 10 and 11 of the algorithm on the real code path: real base, real adapters, real phases."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparring.data.collate import Row
from sparring.data.pairs import Pair, Rows, write_rows
from sparring.errors import LawBroken
from sparring.evaluation.judge import judge
from sparring.generation.local import LocalGenerator
from sparring.generation.play import played_rows
from sparring.generation.sampling import stream_keys
from sparring.models.base import Base
from sparring.models.forward import Layout
from sparring.models.players import Player
from sparring.models.scoring import answer_logprobs, sampling_gap, score
from sparring.objectives.pairwise import LOSSES, at_zero
from tests.laws.lab import Game, dot, gradients, pair_rows, session, size, task

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Game]:
    with session(tmp_path_factory.mktemp("runs"), "selfplay.anchor=0", "selfplay.samples=2") as opened:
        yield Game(opened)


@pytest.fixture(scope="module")
def first(game: Game) -> Rows[Pair]:
    played = game.play(game.start, 0)
    return pair_rows(game.score(game.start, played, None, 0))


def changed(rows: Rows[Pair], file: Path, **changes: object) -> Rows[Pair]:
    write_rows(file, [dataclasses.replace(row, **changes) for row in rows[:]], Pair)  # type: ignore[arg-type]
    return Rows([file], Pair)


def challenge(game: Game) -> None:
    game.session.ring.challenge(Player.load(game.start.folder), seed=1)


# ---------------------------------------------------------------- law 1


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_law_1_starts_at_l_zero(game: Game, first: Rows[Pair], loss: str, reduction: str) -> None:
    challenge(game)
    game.session.ring.model.train()
    made = task(game.session, first, loss=loss, reduction=reduction)
    value, _ = gradients(game.session, made, list(range(len(first))))
    assert value == pytest.approx(at_zero(loss, 0.5), abs=1e-4)


@pytest.mark.parametrize("hold", ["continue", "merge", "stack"])
def test_law_1_and_11_in_each_hold(tmp_path: Path, hold: str) -> None:
    with session(tmp_path, f"selfplay.hold={hold}", "selfplay.anchor=0") as opened:
        played = Game(opened)
        opponent, before = played.start, None
        for t in range(2):
            before, _, player = played.iteration(opponent, t, before)
            steps = [
                event
                for event in map(json.loads, (player.folder / "metrics.jsonl").read_text().splitlines())
                if event["event"] == "step"
            ]
            assert steps[0]["spin_loss"] == pytest.approx(math.log(2), abs=1e-4)
            assert steps[0]["margin"] == pytest.approx(0, abs=1e-3)
            assert abs(steps[-1]["margin"]) > 1e-3  # it moved
            assert Player.load(player.folder).fingerprint != Player.load(opponent.folder).fingerprint
            opponent = player


def test_law_1_stops_a_run_with_wrong_opponent_logprobs(game: Game, first: Rows[Pair], tmp_path: Path) -> None:
    challenge(game)
    wrong = changed(first, tmp_path / "wrong.arrow", opponent_real=first[0].opponent_real - 5)
    made = task(game.session, wrong)
    _, sums = made.loss(game.session.ring.model, [0, 1, 2])
    with pytest.raises(LawBroken, match="law 1"):
        made.inspect(1, {name: value / weight for name, (value, weight) in sums.items()})


def test_law_1_dropout_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparring.models.players import Ring

    require = Ring._train
    with session(tmp_path, "method.dropout=0.3") as opened:
        played = Game(opened)
        pairs = played.score(played.start, played.play(played.start, 0), None, 0)
        monkeypatch.setattr(Ring, "_train", lambda self, name, dropout: require(self, name, 0.3))
        with pytest.raises(LawBroken, match="law 1"):
            played.learn(played.start, pairs, 0)


def test_adapter_dropout_is_for_sft_only(tmp_path: Path) -> None:
    with session(tmp_path, "method.dropout=0.3") as opened:
        played = Game(opened)
        played.iteration(played.start, 0)


def test_noise_raises_the_loss_as_law_1_says(game: Game, first: Rows[Pair], tmp_path: Path) -> None:
    """Noise e of cached log-probs adds beta² Var(e)/8 to the logistic loss."""
    challenge(game)
    noise = torch.distributions.Normal(0.0, 0.5).icdf(torch.linspace(0.0125, 0.9875, 40)).tolist()
    rows = [(row, e) for row in first[:16] for e in noise]
    variance = sum(e * e for e in noise) / len(noise)
    noisy = [
        dataclasses.replace(
            row,
            synthetic_ids=row.synthetic_ids[:1],
            opponent_synthetic=row.opponent_synthetic[:1],
            opponent_real=row.opponent_real + e,
        )
        for row, e in rows
    ]
    write_rows(tmp_path / "noisy.arrow", noisy, Pair)
    made = task(game.session, Rows([tmp_path / "noisy.arrow"], Pair), beta=1.0)
    value, _ = gradients(game.session, made, list(range(len(noisy))))
    assert value - math.log(2) == pytest.approx(variance / 8, rel=0.05)


# ---------------------------------------------------------------- laws 2 and 3


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_law_2_identical_answers_teach_nothing(game: Game, first: Rows[Pair], tmp_path: Path, loss: str) -> None:
    challenge(game)
    with torch.no_grad():  # away from the opponent, so that only identity can make the gradient vanish
        for index, parameter in enumerate(game.session.ring.trainable().values()):
            parameter.add_(0.02 * (-1) ** index)
    row = first[0]
    same = dataclasses.replace(row, synthetic_ids=[row.real_ids] * 2, opponent_synthetic=[row.opponent_real] * 2)
    write_rows(tmp_path / "same.arrow", [same], Pair)
    made = task(game.session, Rows([tmp_path / "same.arrow"], Pair), loss=loss)
    value, found = gradients(game.session, made, [0])
    assert value == pytest.approx(at_zero(loss, 0.5), abs=1e-6)
    _, different = gradients(game.session, task(game.session, first, loss=loss), [0])
    assert size(found) < 1e-5 * size(different)
    _, sums = made.loss(game.session.ring.model, [0])
    assert sums["accuracy"][0] == 0.5


def test_law_2_identical_pairs_are_dropped_and_counted(game: Game, first: Rows[Pair]) -> None:
    assert all(any(ids != row.real_ids for ids in row.synthetic_ids) for row in first[:])
    facts = game.score(game.start, game.play(game.start, 0), None, 0).facts
    assert facts["identical"] + facts["pairs"] == 48
    assert facts["identical"] > 0


def test_law_2_an_opponent_that_gives_every_real_answer_ends_the_loop(tmp_path: Path) -> None:
    from sparring.selfplay import self_play

    file = tmp_path / "same.jsonl"
    row = {"completion": "1+1=2;2+2=4"}
    file.write_text("".join(json.dumps({"prompt": f"{i % 10}+1+2=", **row}) + "\n" for i in range(30)))
    with session(tmp_path, f"data.train={file}", "data.split=train", "sft.epochs=60", "data.eval_size=3") as opened:
        best = self_play(opened)
    assert best.facts == {"player": "sft"}
    assert (best.folder.parent / "0" / "pairs").exists()
    assert not (best.folder.parent / "0" / "player").exists()


def test_held_out_margin_follows_the_reduction(tmp_path: Path) -> None:
    margins = {}
    for reduction in ("sum", "mean"):
        with session(tmp_path, f"selfplay.reduction={reduction}", "selfplay.beta=1", name=reduction) as opened:
            played = Game(opened)
            _, _, player = played.iteration(played.start, 0)
            made = opened.once(
                "0/scores", judge, played.data, player, played.start, played.scores, label="θ_1", iteration=0
            )
            events = map(json.loads, (made.folder / "metrics.jsonl").read_text().splitlines())
            margins[reduction] = next(event["margin"] for event in events if event["event"] == "scores")
    assert 0 < abs(margins["mean"]) < abs(margins["sum"]) / 3  # answers have about 12 tokens


def test_law_3_beta_zero_and_shifts(game: Game, first: Rows[Pair], tmp_path: Path) -> None:
    challenge(game)
    items = list(range(8))
    value, found = gradients(game.session, task(game.session, first, beta=0.0), items)
    assert value == pytest.approx(math.log(2), abs=1e-7)
    assert size(found) == 0
    plain = gradients(game.session, task(game.session, first), items)
    shifted_rows = [
        dataclasses.replace(
            row, opponent_real=row.opponent_real + 3, opponent_synthetic=[v + 3 for v in row.opponent_synthetic]
        )
        for row in first[:]
    ]
    write_rows(tmp_path / "shifted.arrow", shifted_rows, Pair)
    shifted = gradients(game.session, task(game.session, Rows([tmp_path / "shifted.arrow"], Pair)), items)
    assert shifted[0] == pytest.approx(plain[0], abs=1e-5)
    assert dot(shifted[1], plain[1]) == pytest.approx(size(plain[1]) ** 2, rel=1e-3)


# ---------------------------------------------------------------- law 5


@pytest.mark.parametrize(("loss", "slope"), [("logistic", -0.5), ("hinge", -1), ("exponential", -1), ("squared", -2)])
def test_law_5_gradient_at_the_opponent(game: Game, first: Rows[Pair], loss: str, slope: float) -> None:
    """∇L = l'(0)·beta·(∇log p(y) - ∇log p(y')), with the gradients of log p taken from a plain forward."""
    challenge(game)
    row, ring = first[0], game.session.ring
    _, found = gradients(game.session, task(game.session, first, loss=loss, beta=0.7), [0])

    def plain(ids: list[int]) -> dict[str, torch.Tensor]:
        whole = torch.tensor([row.prompt_ids + ids])
        logp = ring.model(input_ids=whole).logits[0].log_softmax(-1)
        start = len(row.prompt_ids) - 1
        sum(logp[start + i, token] for i, token in enumerate(ids)).backward()  # type: ignore[union-attr]
        grads = {name: p.grad.clone() for name, p in ring.trainable().items() if p.grad is not None}
        ring.model.zero_grad()
        return grads

    real, synthetic = plain(row.real_ids), [plain(ids) for ids in row.synthetic_ids]
    for name, value in found.items():
        mean = sum(grads[name] for grads in synthetic) / len(synthetic)
        assert torch.allclose(value, slope * 0.7 * (real[name] - mean), atol=1e-5, rtol=1e-3)


def test_law_5_needs_samples_not_greedy_answers(game: Game) -> None:
    """E ∇log p(y') = 0 for y' ~ p_t, so the pair gradient is the likelihood's; greedy answers break it."""
    opened = game.session
    prompts = opened.prompts(game.data, "train")[:6]
    challenge(game)
    opened.ring.model.eval()

    def gradient(temperature: float, count: int) -> dict[str, torch.Tensor]:
        settings = opened.config.generation.model_copy(update={"temperature": temperature})
        generator = LocalGenerator(opened.ring.model, opened.ring.base, settings)
        asked = [p.prompt_ids for p in prompts for _ in range(count)]
        keys = stream_keys(5, 0, [p.key for p in prompts for _ in range(count)], list(range(count)) * len(prompts))
        rows = [(prompt, a.ids) for prompt, a in zip(asked, generator(asked, keys, 16), strict=True)]
        opened.ring.model.zero_grad()
        (answer_logprobs(opened.ring.model, opened.ring.base, rows).logprob_A.sum() / len(rows)).backward()
        found = {name: p.grad.clone() for name, p in opened.ring.trainable().items() if p.grad is not None}
        opened.ring.model.zero_grad()
        return found

    sampled_few, sampled, greedy = gradient(1.0, 40), gradient(1.0, 640), gradient(0.0, 1)
    assert size(sampled) < size(sampled_few) / 2  # falls like 1/sqrt(n), to 0
    assert size(greedy) > 5 * size(sampled)  # does not


@pytest.mark.parametrize("merge", ["true", "false"])
def test_log_probs_caught_while_playing_are_the_opponents(tmp_path: Path, merge: str) -> None:
    """Law 12 too: with the adapter merged, the opponent that played is the attached one that scores."""
    with session(tmp_path, "selfplay.samples=3", f"generation.merge={merge}") as opened:
        made = Game(opened)
        rows = played_rows(made.play(made.start, 0).folder)[:]
        model = opened.ring.seat(opened.player(made.start))
        answers = [(row.prompt_ids, ids) for row in rows for ids in row.synthetic_ids]
        caught = [value for row in rows for value in row.logprobs]
        assert caught == pytest.approx(score(model, opened.ring.base, answers, 4096), abs=1e-4)
        assert len(caught) == 3 * len(rows)


def test_greedy_negatives_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sparring.generation.local as local

    with session(tmp_path, "selfplay.samples=12") as opened:
        played = Game(opened)
        draw = local.draw
        monkeypatch.setattr(local, "draw", lambda logits, u, temperature, top_p: draw(logits, u, 0.0, top_p))
        answers = played.play(played.start, 0)
        with pytest.raises(LawBroken, match="law 5"):
            played.score(played.start, answers, None, 0)


def test_chosen_greedy_is_warned_about(tmp_path: Path) -> None:
    with session(tmp_path, "generation.temperature=0.7") as opened:
        played = Game(opened)
        pairs = played.score(played.start, played.play(played.start, 0), None, 0)
        assert "not samples" in (pairs.folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("temperature", "caught"), [(1.0, False), (0.0, True), (0.5, True)])
def test_sampling_score_tells_samples(game: Game, temperature: float, caught: bool) -> None:
    opened = game.session
    model = opened.ring.seat(Player.load(game.start.folder))
    settings = opened.config.generation.model_copy(update={"temperature": temperature})
    prompts = [p.prompt_ids for p in opened.prompts(game.data, "train")[:]] * 16
    keys = stream_keys(0, 0, [0] * len(prompts), list(range(len(prompts))))
    answers = LocalGenerator(model, opened.ring.base, settings)(prompts, keys, 16)
    rows = [(prompt, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]
    gap = sampling_gap(model, opened.ring.base, rows, 4096)
    assert (abs(gap.total) > gap.allowed(1e-9)) == caught
    assert caught or abs(gap.z) < 3


# ---------------------------------------------------------------- law 6


def test_law_6_fresh_lora_is_the_base_bit_for_bit(game: Game, first: Rows[Pair]) -> None:
    ring = game.session.ring
    base = Player.untrained(ring.base)
    rows = [(row.prompt_ids, row.real_ids) for row in first[:8]]
    reference = score(ring.seat(base), ring.base, rows, 4096)
    model = ring.challenge(base, seed=3)
    model.train()
    assert score(model, ring.base, rows, 4096) == reference
    _, found = gradients(game.session, task(game.session, first, loss="correlation"), list(range(8)))
    for name, gradient in found.items():
        if "lora_A" in name:
            assert gradient.abs().max() == 0
    assert any(gradient.abs().max() > 0 for name, gradient in found.items() if "lora_B" in name)


# ---------------------------------------------------------------- law 10


def in_layout(base: Base, packed: bool) -> Base:
    """The laboratory's base shares prompts; it can be made not to."""
    assert base.layout.packed
    return base if packed else dataclasses.replace(base, layout=Layout(direct=True))


@LAYOUTS
def test_law_10_padding_packing_and_batching_change_nothing(game: Game, first: Rows[Pair], packed: bool) -> None:
    ring = game.session.ring
    model = ring.seat(Player.load(game.start.folder))
    rows = [
        (row.prompt_ids * (1 + i % 3), ids[: 3 + i % 9])
        for i, row in enumerate(first[:12])
        for ids in row.synthetic_ids
    ]
    base = in_layout(ring.base, packed)
    alone = [score(model, in_layout(ring.base, False), [row], 4096)[0] for row in rows]
    for tokens in (1, 64, 300, 100_000):
        assert score(model, base, rows, tokens) == pytest.approx(alone, abs=1e-4)
    order = [rows[i] for i in (5, 2, 11, 2, 0)]  # the same neighbours no more
    assert score(model, base, order, 4096) == pytest.approx([alone[i] for i in (5, 2, 11, 2, 0)], abs=1e-4)


@LAYOUTS
def test_law_10_only_answer_positions_get_gradient(game: Game, packed: bool) -> None:
    """What the decoder gives: the loss pulls at each position that predicts an answer token, and nowhere else."""
    ring = game.session.ring
    base = in_layout(ring.base, packed)
    model = ring.seat(Player.load(game.start.folder))
    rows = [([1, 5, 6, 7, 8, 9], [10, 11]), ([1, 5], [12, 13, 14, 2])]
    kept: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_(True))
        return kept[-1]

    handle = model.get_base_model().get_decoder().norm.register_forward_hook(keep)
    answer_logprobs(model, base, rows).logprob_A.sum().backward()
    handle.remove()
    touched = kept[0].grad.abs().sum(dim=-1) > 0  # type: ignore[union-attr]
    # prompt's last and the answers' tokens but the last; row by row, or one behind the other
    row = [[0, 0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]
    expected = [row[0] + row[1]] if packed else [row[0], row[1] + [0, 0]]
    assert touched.int().tolist() == expected


@LAYOUTS
def test_unmasked_prompt_is_caught(game: Game, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring that counts prompt tokens no longer agrees with a plain forward over the answer."""
    import sparring.models.scoring as scoring

    ring = game.session.ring
    base = in_layout(ring.base, packed)
    model = ring.seat(Player.load(game.start.folder))
    rows = [([1, 5, 6, 7, 8, 9], [10, 11]), ([1, 5], [12, 13, 14, 2])]
    whole = torch.tensor([rows[0][0] + rows[0][1]])
    logp = model(input_ids=whole).logits[0].log_softmax(-1)
    plain = (logp[5, 10] + logp[6, 11]).item()
    assert score(model, base, rows, 4096)[0] == pytest.approx(plain, abs=1e-5)
    right = scoring.collate

    def unmasked(given: list[Row], *more: object) -> object:
        """The whole row but its first token as its answer."""
        return right([(prompt[:1], prompt[1:] + answer) for prompt, answer in given], *more)  # type: ignore[arg-type]

    monkeypatch.setattr(scoring, "collate", unmasked)
    assert abs(score(model, base, rows, 4096)[0] - plain) > 0.1


# ---------------------------------------------------------------- law 11 and forged plays


def test_law_11_stale_opponent_is_caught(tmp_path: Path) -> None:
    with session(tmp_path) as opened:
        played = Game(opened)
        before, _, player = played.iteration(played.start, 0)
        with pytest.raises(LawBroken, match="law 11"):  # answers of θ_0 offered as θ_1's
            played.score(player, before, None, 1)


def test_law_11_pairs_of_another_player_are_caught(tmp_path: Path) -> None:
    with session(tmp_path) as opened:
        played = Game(opened)
        _, pairs, player = played.iteration(played.start, 0)
        with pytest.raises(LawBroken, match="law 11"):  # θ_0's log-probs offered to a player that starts from θ_1
            played.learn(player, pairs, 1)


def test_law_11_a_player_that_does_not_move_is_caught(tmp_path: Path) -> None:
    with session(tmp_path, "selfplay.lr=1e-30") as opened:
        played = Game(opened)
        with pytest.raises(LawBroken, match="still its opponent"):
            played.iteration(played.start, 0)


def test_law_11_changed_weights_are_caught(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with session(tmp_path) as opened:
        played = Game(opened)
        file = played.start.folder / "adapter_model.safetensors"
        weights = load_file(file)
        name = sorted(weights)[0]
        weights[name] = weights[name] + 1
        save_file(weights, file)
        with pytest.raises(LawBroken, match="law 11"):
            played.play(played.start, 0)


@pytest.mark.parametrize("forgery", ["end token", "template"])
def test_forged_plays_are_caught(tmp_path: Path, forgery: str) -> None:
    from sparring.data.pairs import Played
    from sparring.generation.play import played_rows

    with session(tmp_path, "generation.max_new_tokens=4") as opened:
        played = Game(opened)
        answers = played.play(played.start, 0)
        rows = played_rows(answers.folder)[:]
        assert rows[0].finish == ["length"]
        if forgery == "end token":  # an end token put behind a cut answer
            end = opened.renderer.end_ids[0]
            forged = [dataclasses.replace(r, synthetic_ids=[[*ids, end] for ids in r.synthetic_ids]) for r in rows]
        else:  # the opponent asked in other words than the player is trained on
            forged = [dataclasses.replace(r, prompt_ids=[*r.prompt_ids, 5]) for r in rows]
        write_rows(answers.folder / "shard-00000.arrow", forged, Played)
        with pytest.raises(LawBroken, match=r"end token|another prompt"):
            played.score(played.start, answers, None, 0)
