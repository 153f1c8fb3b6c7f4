"""What a run of reinforcement learning has to say: its verdict, where the yardsticks disagree, and its plots."""

from __future__ import annotations

from typing import Any

from sparring.report.plot_steps import boundaries, phases_with, series, step_caption
from sparring.report.records import Row, Run, difference, number, prompts, text
from sparring.report.svg import GREEN, INK, MUTED, REAL, SYNTHETIC, Plot, brief, end_labels, figure, to_svg
from sparring.report.tables import fixed, interval

_BY = {"nll": "held-out NLL", "exact_kl": "exact KL to the data", "match": "the share of answers that match"}


def reward_verdict(run: Run) -> str:
    """Who is best, by how much against θ_0 as the scorer has it, what NLL says, and whether the two agree."""
    player, metric = (text((run.best or {}).get(key)) for key in ("player", "metric"))
    mine, start = run.scores.get(player, {}), run.scores.get(run.start, {})
    by_reward = metric in ("", "reward")
    head = f"Best player{'' if by_reward else f' by {_BY.get(metric, metric)}'}: {run.label(player)}."
    value = f"mean held-out reward {fixed(number(mine, 'reward'))} ({text(mine.get('scorer'))})"
    if player == run.start:
        rivals = "; ".join(f"{run.label(name)} {_gain(row)}" for name, row in run.scores.items() if name.isdecimal())
        said = f"No iteration improved on its {value}" if by_reward else f"No iteration is better so; its {value}"
        said += f": {rivals}." if rivals else "."
    else:
        said = f"{value[0].upper()}{value[1:]} against {fixed(number(start, 'reward'))} for {run.label(run.start)}"
        said += _certainty(mine) + _rolled_back(run, player)
        said += f" Held-out NLL {fixed(number(mine, 'nll'))} per token against {fixed(number(start, 'nll'))}"
        if found := difference(mine):
            said += f": difference {fixed(found[0], sign=True)} {interval(*found[1:], sign=True)}"
        said += "."
    return " ".join(part for part in (head, said, disagreement(run) if by_reward else scorer_and_nll(run)) if part)


def disagreement(run: Run) -> str:
    """A sentence if NLL would have chosen another player than reward did; else empty."""
    best = text((run.best or {}).get("player"))
    values = {name: nll for name, row in run.scores.items() if (nll := number(row, "nll")) is not None}
    values.pop("base" if run.start != "base" else "", None)
    if best not in values:
        return ""
    lowest = min(values, key=lambda name: values[name])
    if lowest == best:
        return ""
    return (
        f"Reward and likelihood disagree: by held-out NLL {run.label(lowest)} is best ({fixed(values[lowest])} against "
        f"{fixed(values[best])})."
    )


def scorer_and_nll(run: Run) -> str:
    """Of self-play with a scorer: whether it and held-out NLL would choose the same player; empty without a scorer."""
    rows = {name: row for name, row in run.scores.items() if name == run.start or name.isdecimal()}
    rewards = {name: value for name, row in rows.items() if (value := number(row, "reward")) is not None}
    losses = {name: value for name, row in rows.items() if (value := number(row, "nll")) is not None}
    if len(rewards) < 2 or rewards.keys() != losses.keys():
        return ""
    low = min(losses, key=lambda name: losses[name])
    alike = [name for name, value in rewards.items() if value == max(rewards.values())]
    high = low if low in alike else alike[0]
    scorer = text(rows[high].get("scorer"))
    gain = f" Its reward less that of {run.label(run.start)}: {_gain(rows[high])}." if high != run.start else ""
    if high == low and len(alike) > 1:
        both = " and ".join(run.label(name) for name in alike)
        return f"The scorer ({scorer}) puts {both} first alike; of them {run.label(low)} has the lowest NLL.{gain}"
    if high == low:
        return f"The scorer ({scorer}) and held-out NLL agree on {run.label(high)}.{gain}"
    return (
        f"The scorer and likelihood disagree: by held-out NLL {run.label(low)} is best ({fixed(losses[low])} against "
        f"{fixed(losses[high])}), by mean held-out reward ({scorer}) {run.label(high)} ({fixed(rewards[high])} against "
        f"{fixed(rewards[low])}).{gain}"
    )


def reward_gain(row: Row) -> tuple[float, float, float] | None:
    """(mean, low, high) of the paired difference in reward to θ_0, if it was measured."""
    found = row.get("reward_difference")
    if not isinstance(found, dict):
        return None
    mean, low, high = (number(found, key) for key in ("mean", "low", "high"))
    return None if mean is None or low is None or high is None else (mean, low, high)


def _gain(row: Row) -> str:
    found = reward_gain(row)
    return fixed(number(row, "reward")) if found is None else f"{fixed(found[0], sign=True)} {_range(found)}"


def _range(found: tuple[float, float, float]) -> str:
    return interval(*found[1:], sign=True)


def _certainty(row: Row) -> str:
    found = reward_gain(row)
    if found is None:
        return "; no interval was measured, so whether they differ is not known."
    units = prompts(row)
    over = f", 95 % over {units:.0f} prompts" if units else ", 95 %"
    said = f": difference {fixed(found[0], sign=True)} {_range(found)}{over}."
    if found[1] > 0:
        return f"{said} The interval lies above 0: an improvement on these prompts."
    return f"{said} The interval {'includes 0: no difference seen' if found[2] >= 0 else 'lies below 0: worse'}."


def _rolled_back(run: Run, player: str) -> str:
    later = [run.label(name) for name in run.scores if name.isdecimal() and int(name) > int(player)]
    return f" Rolled back: {' and '.join(later)} did not improve on it." if later else ""


# ---------------------------------------------------------------- plots


def reward_plot(run: Run) -> Plot | None:
    """Held-out reward and held-out NLL of every player, one above the other, with KL to θ_0 below."""
    players = [player for player, row in run.scores.items() if number(row, "reward") is not None]
    if not players:
        return None
    made, axes = figure(3, 5.6, sharex=True)
    _points(run, axes[0], players, ("reward", "reward_low", "reward_high"), GREEN)
    _points(run, axes[1], players, ("nll", "nll_low", "nll_high"), REAL)
    _points(run, axes[2], players, ("kl_start", "", ""), INK)
    real = number(run.scores[players[-1]], "real_reward")
    if real is not None:
        axes[0].axhline(real, color=MUTED, linewidth=1.1, linestyle=":")
        end_labels(axes[0], [(real, "real answers", MUTED)])
    axes[0].set_title("mean held-out reward")
    axes[1].set_title("held-out NLL of the real answers, nats per token")
    axes[2].set_title("KL to θ₀, nats per answer")
    axes[2].set_xticks(range(len(players)), [brief(run.label(player), 12) for player in players])
    axes[2].set_xlim(-0.4, len(players) - 0.6)
    title = "Reward and likelihood"
    said = "; ".join(
        f"{run.label(player)} reward {fixed(number(run.scores[player], 'reward'))}, "
        f"NLL {fixed(number(run.scores[player], 'nll'))}"
        for player in players
    )
    caption = (
        f"{_chosen_by(run)} the middle one is the yardstick that no reward moves. Bars are 95 % "
        "intervals over prompts. Reward that rises while NLL rises too is bought with the real answers' likelihood."
    )
    return Plot("reward", title, to_svg(made, "reward", title, said), caption)


def _chosen_by(run: Run) -> str:
    """By which line of the plot the player is chosen."""
    metric = text((run.best or {}).get("metric"))
    if metric in ("", "reward"):
        return "The player is chosen by the upper line;"
    return f"The player is chosen by {_BY.get(metric, metric)};"


def _points(run: Run, axis: Any, players: list[str], keys: tuple[str, str, str], colour: str) -> None:
    found = [(x, *(number(run.scores[player], key) for key in keys)) for x, player in enumerate(players)]
    line = [(x, value) for x, value, _, _ in found if value is not None]
    if line:
        axis.plot(*zip(*line, strict=True), "o-", color=colour)
    for x, _, low, high in found:
        if low is not None and high is not None:
            axis.vlines(x, low, high, color=colour, linewidth=1.2)
    axis.margins(y=0.2)


def policy_plot(run: Run) -> Plot | None:
    """The loss of learning from rewards, KL to θ_0, and the share of tokens whose ratio is clipped."""
    phases = phases_with(run, "policy_loss")
    if not phases:
        return None
    made, axes = figure(3, 5.6, sharex=True)
    shown = (("policy_loss", INK, "loss"), ("kl", REAL, "KL"), ("clipped", SYNTHETIC, "clipped"))
    for axis, (key, colour, name) in zip(axes, shown, strict=True):
        last = series(run, axis, phases, key, colour, "-")
        axis.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
        end_labels(axis, [(last, name, colour)] if last is not None else [])
    axes[0].set_title("policy loss")
    axes[1].set_title("KL to θ₀, nats per answer")
    axes[2].set_title("share of tokens that are clipped")
    boundaries(run, axes, phases)
    title = "Learning from rewards"
    caption = (
        "The loss starts near 0 in each iteration, where every ratio is 1, and says nothing about reward. At each "
        "boundary the player answers anew." + step_caption(run, phases)
    )
    said = f"{len(phases)} iterations"
    return Plot("policy", title, to_svg(made, "policy", title, said), caption)
