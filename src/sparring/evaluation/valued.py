"""The judge phase of reinforcement learning: the yardsticks of every player, and what the scorer thinks of it.

Warns of what rewards are known to do to a player: KL, length, entropy, and rewards that rise at the answers' cost.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path

from sparring.config_reinforce import ReinforceConfig
from sparring.data.pairs import Prompt, prompts_of
from sparring.evaluation.judge import judge, read_judged
from sparring.evaluation.statistics import share
from sparring.files import write_atomic
from sparring.rewarding import scorer_of, settings_of, worth
from sparring.rewards.scorer import Answered, Scorer
from sparring.run import Event, Phase
from sparring.session import Session


def judge_valued(
    session: Session, folder: Path, data: Phase, player: Phase | None, start: Phase, first: Phase | None,
    *, label: str, scorer: str,
) -> Event:  # fmt: skip
    """`judge`, and the scorer's mean over the held-out answers; rewards.jsonl holds it prompt by prompt.

    first  theta_0's own judgement, against which reward, length and entropy are compared; None: this is it, or the base
    """
    facts = judge(session, folder, data, player, start, None, label=label, iteration=None)
    events = session.run.events()  # of all processes together
    if not session.crew.writes:
        return {}
    seen = next(event for event in events if event["event"] == "scores")
    found = _valued(session, folder, data, folder, first)
    session.run.log({"event": "reward", "player": seen["player"], **found})
    kept = {"reward": found["reward"], "entropy": found["entropy"], "length": seen["length"], "kl": seen["kl_start"]}
    if first is not None:
        for text in alarms(settings_of(session), label, {**seen, **found}, first.facts):
            session.run.warn(text)
    return {**facts, **kept}


def value(session: Session, folder: Path, data: Phase, judged: Phase, first: Phase | None, *, scorer: str) -> Event:
    """What the scorer says of the answers that a judged player gave; rewards.jsonl holds it prompt by prompt.

    first  the same of theta_0, against which it is compared; None: this is it
    """
    if not session.crew.writes:
        return {}
    found = _valued(session, folder, data, judged.folder, first)
    session.run.log({"event": "reward", "player": judged.name.removesuffix("-scores").removesuffix("/scores"), **found})
    return {"reward": found["reward"]}


def mean_rewards(scorer: Scorer, prompts: Sequence[Prompt], said: Sequence[Sequence[list[int]]]) -> list[float]:
    """The scorer's mean over the answers to each prompt. said: [prompt][sample], token ids."""
    pairs = list(zip(prompts, said, strict=True))
    values = iter(worth(scorer, [Answered(p.prompt_ids, ids, p.real_ids) for p, row in pairs for ids in row]))
    return [sum(next(values) for _ in row) / len(row) for row in said]


def _valued(session: Session, folder: Path, data: Phase, judged: Path, first: Phase | None) -> Event:
    """The facts of a scorer's judgement, from the answers in `judged`; writes rewards.jsonl."""
    given, prompts, said = scorer_of(session), session.prompts(data, "eval")[:], read_judged(judged)
    units = prompts_of(prompts)
    means = mean_rewards(given, prompts, [row["ids"] for row in said])
    real = worth(given, [Answered(p.prompt_ids, p.real_ids, p.real_ids) for p in prompts])
    tokens = sum(len(ids) for row in said for ids in row["ids"])
    write_atomic(folder / "rewards.jsonl", "".join(json.dumps({"reward": value}) + "\n" for value in means))
    return {
        "scorer": given.label,
        **_interval(means, units, "reward"),
        "real_reward": sum(real) / len(real),
        "entropy": -sum(value for row in said for value in row["logprobs"]) / tokens,
        "reward_difference": first and paired_gap(means, rewards_of(first), units),
    }


def alarms(config: ReinforceConfig, label: str, mine: Event, first: Event) -> list[str]:
    """What a reader must not miss about a player, against theta_0's facts; each a sentence."""
    found = []
    if config.kl_alarm is not None and mine["kl_start"] > config.kl_alarm:
        found.append(f"{label}: KL to θ_0 is {mine['kl_start']:.1f} nats per answer (alarm {config.kl_alarm:g})")
    ratio = mine["length"] / first["length"]
    if config.length_alarm is not None and not 1 / config.length_alarm <= ratio <= config.length_alarm:
        found.append(
            f"{label}: answers are {mine['length']:.1f} tokens long, θ_0's {first['length']:.1f}: the scorer may be "
            f"pleased by {'long' if ratio > 1 else 'short'} answers"
        )
    if config.entropy_alarm is not None and mine["entropy"] < config.entropy_alarm * first["entropy"]:
        found.append(
            f"{label}: entropy collapsed to {mine['entropy']:.3f} nats per token, θ_0's is {first['entropy']:.3f}: it "
            "says nearly always the same, and groups of equal answers teach nothing"
        )
    gain, loss = mine["reward_difference"], mine["nll_difference"]
    if gain and loss and gain["low"] > 0 and loss["low"] > 0:
        found.append(
            f"{label}: reward rose by {gain['mean']:.3f} [{gain['low']:.3f}, {gain['high']:.3f}] while held-out NLL of "
            f"real answers rose by {loss['mean']:.4f} [{loss['low']:.4f}, {loss['high']:.4f}] per token: the scorer is "
            "pleased at their cost, or is being cheated; read the answers"
        )
    return found


def _interval(means: Sequence[float], prompts: Sequence[Hashable], name: str) -> Event:
    found = _share(means, prompts)
    return {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


def paired_gap(mine: Sequence[float], theirs: Sequence[float], prompts: Sequence[Hashable]) -> Event | None:
    """Mean of mine less theirs, row by row, with its 95 % interval over prompts; None with too few of these for one."""
    found = _share([a - b for a, b in zip(mine, theirs, strict=True)], prompts)
    return None if found["low"] is None else found


def _share(means: Sequence[float], prompts: Sequence[Hashable]) -> Event:
    """Of a number per row, each row counting the same."""
    return share(means, [1.0] * len(means), prompts)


def rewards_of(judged: Phase) -> list[float]:
    """The scorer's mean of each held-out prompt, as a judgement wrote it."""
    lines = (judged.folder / "rewards.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["reward"] for line in lines]
