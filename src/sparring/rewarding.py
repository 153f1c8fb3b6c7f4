"""From answers to groups that can be learnt from: play, the rewards, and the log-probs of every token, each once.

With a baseline, a group of equal rewards has advantages of 0: it is counted, and neither scored nor learnt. Without one
every group stays, for equal rewards say something, and KL is paid for those of 0 too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparring.config import Config
from sparring.config_reinforce import ReinforceConfig
from sparring.data.messages import Renderer
from sparring.data.pairs import Group, Played, Rewarded, Rows, write_rows, write_stream
from sparring.drawn import drawn, how_many
from sparring.errors import ConfigError, LawBroken, RewardError
from sparring.generation.play import play_prompts, played_rows
from sparring.models.base import fingerprint_base
from sparring.models.flops import Flops
from sparring.models.scoring import computed_tokens, score_tokens
from sparring.objectives.policy_gradient import WITHOUT_BASELINE, advantages
from sparring.opponent import BATCH, FAR, check_asked, check_player, check_samples, rounding_noise
from sparring.policy_task import group_rows
from sparring.rewards.build import build_scorer, check_scorer
from sparring.rewards.scorer import Answered, Scorer, finite
from sparring.rewards.settings import MatchScore, ScorerSettings, ValidityScore
from sparring.run import Event, Phase
from sparring.session import Session

ROUNDING = 1e-9  # how far advantages may be from adding up to 0, as a share of the largest


def settings_of(session: Session) -> ReinforceConfig:
    """The section `reinforce`, or its defaults."""
    return session.config.reinforce or ReinforceConfig()


def wanted_scorer(config: Config) -> ScorerSettings:
    """The section `scorer`; without one, the laboratory's validity, or what evaluation.match says. Else ConfigError."""
    if config.scorer is not None:
        if config.scorer.name == "validity" and not config.in_laboratory:
            raise ConfigError(
                "scorer validity is known only in the laboratory (data.train laboratory, no data.eval, rendered as "
                "text); give another scorer"
            )
        return config.scorer
    if config.in_laboratory:
        return ValidityScore()
    if config.evaluation.match is None:
        raise ConfigError(
            "nothing says what an answer is worth; give scorer (model, implicit, match, regex or function), or "
            "evaluation.match"
        )
    return MatchScore(match=config.evaluation.match)


def scorer_print(session: Session) -> str:
    """The scorer's fingerprint, after all that can be found wrong with it before a model is loaded."""
    config = session.config
    return check_scorer(wanted_scorer(config), session.renderer, fingerprint_base(session.base_folder, config.model))


def judged_by(config: Config, renderer: Renderer, base_fingerprint: str) -> Event | None:
    """What judges the players of a run: its settings, and the fingerprint of its content. None if nothing does."""
    if config.reward is not None or (config.scorer is None and config.reinforce is None):
        return None
    wanted = wanted_scorer(config)
    return {"settings": wanted.model_dump(mode="json"), "fingerprint": check_scorer(wanted, renderer, base_fingerprint)}


def examiner(session: Session) -> str:
    """The fingerprint of what scores test answers where nothing else asks for a scorer; "" if nothing does."""
    return scorer_print(session) if session.config.scorer or session.config.evaluation.best_of > 1 else ""


def scorer_of(session: Session) -> Scorer:
    """What rewards are given by."""
    return build_scorer(wanted_scorer(session.config), session)


def worth(scorer: Scorer, answers: Sequence[Answered]) -> list[float]:
    """A finite score of each answer; RewardError where the scorer does not give one."""
    found = scorer(answers)
    if len(found) != len(answers):
        raise RewardError(f"scorer {scorer.label} gave {len(found)} scores for {len(answers)} answers; one each is due")
    return [finite(f"scorer {scorer.label}", value) for value in found]


# ---------------------------------------------------------------- play


def play_groups(session: Session, folder: Path, data: Phase, player: Phase, *, iteration: int) -> Event:
    """y_1 … y_K ~ p_theta_t(.|x) for the iteration's prompts."""
    settings = settings_of(session)
    prompts = drawn(session, data, how_many(session, settings, data, player, iteration), iteration)
    return play_prompts(session, folder, data, player, prompts, settings.samples, iteration)


# ---------------------------------------------------------------- rewards


def reward(session: Session, folder: Path, played: Phase, *, scorer: str) -> Event:
    """What each answer is worth, once. One process asks the scorer."""
    if not session.crew.writes:
        return {}
    given, rows = scorer_of(session), []
    fresh = played_rows(played.folder)
    for batch in fresh.batches(BATCH):
        asked = [Answered(row.prompt_ids, ids, row.real_ids) for row in batch for ids in row.synthetic_ids]
        values = iter(worth(given, asked))
        rows += [Rewarded(row.key, [next(values) for _ in row.synthetic_ids]) for row in batch]
        session.run.tell({"event": "progress", "done": len(rows), "total": len(fresh)})
    write_rows(folder / "rewards.arrow", rows, Rewarded)
    every = [value for row in rows for value in row.rewards]
    mean = sum(every) / len(every)
    spread = math.sqrt(sum((value - mean) ** 2 for value in every) / len(every))
    return {"scorer": given.label, "reward": mean, "reward_std": spread}


# ---------------------------------------------------------------- groups


def score_groups(
    session: Session, folder: Path, data: Phase, player: Phase, start: Phase, played: Phase, rewards: Phase,
    *, iteration: int,
) -> Event:  # fmt: skip
    """Advantages, and log p of every token under the player that gave the answers and under theta_0, once.

    Raises LawBroken unless the answers are samples of this player, as they were given to these prompts.
    """
    who, first, fresh = session.player(player), session.player(start), played_rows(played.folder)
    check_player(played, who)
    asked = drawn(session, data, played.facts["answers"] // settings_of(session).samples, iteration)
    check_asked(session, asked, played, fresh)
    worths = Rows([rewards.folder / "rewards.arrow"], Rewarded)
    counts = {"groups": 0, "skipped": 0, "tokens": 0, "flops": 0}
    gap = [0.0, 0.0]  # squares of how far log-probs when sampled and when scored are apart, and how many
    model = session.ring.seat(who)
    z, noise, seated = check_samples(session, model, fresh), rounding_noise(session, model, fresh), session.ring.seated
    moved = who.fingerprint != first.fingerprint
    halfway = folder / ("sampled.arrow" if moved else "groups.arrow")
    _write(session, halfway, _sampled(session, model, fresh, worths, counts, gap))
    noise = max(noise, session.crew.decide(lambda: _agreed(session, gap)))
    if moved:
        model = session.ring.seat(first)
        _write(session, folder / "groups.arrow", _referred(session, model, Rows([halfway], Group), counts))
        if session.crew.writes:
            halfway.unlink()
    if not counts["groups"]:
        session.run.warn("every group's answers have equal rewards: nothing is left to learn from")
    entropy = _entropy(fresh)
    law = {"sampling_z": z, "noise": noise, "opponent": who.fingerprint, "seated": seated}
    return {**counts, "entropy": entropy, **law}


def _write(session: Session, path: Path, batches: Iterator[list[Group]]) -> None:
    if session.crew.writes:
        write_stream(path, batches, Group)
    else:
        deque(batches, maxlen=0)  # takes its part


def _sampled(
    session: Session, model: Any, fresh: Rows[Played], worths: Rows[Rewarded], counts: dict[str, int], gap: list[float]
) -> Iterator[list[Group]]:
    """Groups that teach, with log-probs under the seated player as those of theta_0 too; adds to counts and gap."""
    settings, flops = settings_of(session), Flops.of(model)
    every = torch.tensor([row.rewards for row in worths[:]], dtype=torch.float64)
    advantage_BK = advantages(every, settings.algorithm, settings.scale_rewards)
    teaches = [True] * len(fresh)
    if settings.algorithm not in WITHOUT_BASELINE:
        _check_centred(advantage_BK)
        teaches = (advantage_BK != 0).any(dim=-1).tolist()
    for starts, mine in _turns(session, len(fresh)):
        given = []
        for number, first in enumerate(starts):
            rows = [(fresh[i], advantage_BK[i].tolist()) for i in _span(first, len(fresh)) if teaches[i]]
            counts["groups"] += len(rows)
            counts["skipped"] += len(_span(first, len(fresh))) - len(rows)
            groups = [Group(row.key, row.prompt_ids, row.synthetic_ids, values, [], []) for row, values in rows]
            _count(session, groups, counts, flops)
            if number == mine:
                found = _tokens(session, model, groups)
                given.append(
                    ([replace(one, sampled=each, start=each) for one, each in zip(groups, found, strict=True)],
                     _apart([row for row, _ in rows], found))
                )  # fmt: skip
        for groups, (squares, many) in session.crew.gather(given):
            gap[0], gap[1] = gap[0] + squares, gap[1] + many
            yield groups


def _referred(session: Session, model: Any, halfway: Rows[Group], counts: dict[str, int]) -> Iterator[list[Group]]:
    """The groups with log-probs under theta_0, which is seated."""
    flops = Flops.of(model)
    for starts, mine in _turns(session, len(halfway)):
        given = []
        for number, first in enumerate(starts):
            groups = halfway[first : first + BATCH]
            _count(session, groups, counts, flops)
            if number == mine:
                found = _tokens(session, model, groups)
                given.append([replace(one, start=each) for one, each in zip(groups, found, strict=True)])
        yield from session.crew.gather(given)


def _turns(session: Session, count: int) -> Iterator[tuple[list[int], int]]:
    """Where batches start, one for each process at a time, and which of them is this process's."""
    crew, starts = session.crew, list(range(0, count, BATCH))
    for turn in range(0, len(starts), crew.size):
        yield starts[turn : turn + crew.size], crew.rank
        session.run.tell({"event": "progress", "done": min(count, (turn + crew.size) * BATCH), "total": count})


def _span(first: int, count: int) -> range:
    return range(first, min(first + BATCH, count))


def _tokens(session: Session, model: Any, groups: Sequence[Group]) -> list[list[list[float]]]:
    """[group][answer][token]: log-probs under the seated player."""
    rows = [row for group in groups for row in group_rows(group)]
    values = iter(score_tokens(model, session.ring.base, rows, session.config.optimiser.micro_batch_tokens))
    return [[next(values) for _ in group.answer_ids] for group in groups]


def _count(session: Session, groups: Sequence[Group], counts: dict[str, int], flops: Flops) -> None:
    rows = [row for group in groups for row in group_rows(group)]
    tokens = computed_tokens(session.ring.base, rows)
    lengths = [len(prompt) + len(answer) - 1 for prompt, answer in rows]
    counts["tokens"] += tokens
    counts["flops"] += flops.forward(lengths, sum(len(answer) for _, answer in rows), tokens)


# ---------------------------------------------------------------- laws


def _check_centred(advantage_BK: torch.Tensor) -> None:
    """Advantages with a baseline add up to 0 in every group: what one answer gains, the others lose."""
    off = advantage_BK.sum(dim=-1).abs().max().item()
    allowed = ROUNDING * (1 + advantage_BK.abs().max().item()) * advantage_BK.shape[-1]
    if not off <= allowed < math.inf:  # NaN breaks it too
        raise LawBroken(f"advantages add up to {off:.2g} in a group instead of 0: a reward is too large to be compared")


def _apart(rows: Sequence[Played], found: list[list[list[float]]]) -> tuple[float, int]:
    """Squares, per token, of how far answers' log-probs are from those caught when they were sampled, and how many."""
    pairs = [
        (sum(tokens) - caught, len(tokens))
        for row, answers in zip(rows, found, strict=True)
        for tokens, caught in zip(answers, row.logprobs, strict=True)
    ]
    return sum(gap * gap / count for gap, count in pairs), len(pairs)


def _agreed(session: Session, gap: list[float]) -> float:
    """The sampled log-probs are those of the packed forward pass; how far apart they are, per square root of a token.

    Only in fp32: in 16 bits decoding and scoring differ by tenths of a nat per answer.
    """
    if session.ring.base.dtype != torch.float32 or not gap[1]:
        return 0.0
    noise = math.sqrt(gap[0] / gap[1])
    if noise > FAR:
        raise LawBroken(
            f"law 5: the answers' log-probs when they were sampled and when they are scored differ by {noise:.2g} nats "
            "per square root of a token: the answers were changed since, or asked with another template"
        )
    return noise


def _entropy(fresh: Rows[Played]) -> float:
    """Of the player that answered, in nats per token, as its own samples tell."""
    lengths = fresh.inner_lengths("synthetic_ids")
    total = sum(value for row in fresh.column("logprobs").to_pylist() for value in row)
    return -float(total) / sum(map(sum, lengths))
