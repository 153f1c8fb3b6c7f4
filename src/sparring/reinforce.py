"""START HERE: reinforcement learning from rewards, in the shape of self-play (selfplay.py).

    input   prompts x_i;  a scorer r(x, y);  θ_0 = the base after supervised fine-tuning, or `start`;  T iterations
    for t = 0 … T-1
        play    y_i1 … y_iK ~ p_θt(·|x_i)                            the prompt computed once for its group
        reward  r_ik = r(x_i, y_ik),  A_ik = how much better than its group
        score   log p_θt and log p_θ0 of every token                 once, so learning holds one model
        learn   θ_{t+1} = argmin_θ  Σ -min(ρ·A, clip(ρ)·A) + β·KL(p_θ || p_θ0),   ρ = p_θ / p_θt of a token
    output  the best of θ_0 … θ_T by the scorer's mean on held-out prompts, or another metric; held-out NLL is shown

The advantages (GRPO, RLOO, REINFORCE) and the loss are in objectives/policy_gradient.py. `once` makes a phase or finds
it finished: resuming a killed run is calling this again. What is checked on the way: the answers are samples of the
player that learns from them; their log-probs are those of the packed forward pass; advantages add up to 0 in a group;
a group of equal rewards is skipped, where there is a baseline; at the first step every ratio is 1.
"""

from __future__ import annotations

from sparring.config import Config
from sparring.drawn import used_up
from sparring.errors import ConfigError
from sparring.evaluation.choose import choose, metric_of, tidy
from sparring.evaluation.examine import examination
from sparring.evaluation.quantisation import quantisation_cost
from sparring.evaluation.valued import judge_valued
from sparring.improving import improve
from sparring.learning import fine_tune
from sparring.preparing import prepare_data
from sparring.rewarding import play_groups, reward, score_groups, scorer_print, settings_of
from sparring.run import Phase
from sparring.session import Session


def reinforce(session: Session) -> Phase:
    """Sample, reward, learn; returns the phase that says which player is best and why."""
    once, scorer = session.once, scorer_print(session)
    metric = metric_of(settings_of(session).select)
    data = once("data", prepare_data)
    if session.quantised:
        once("quantisation", quantisation_cost, data)
    start = player = once("sft", fine_tune, data)  # θ_0
    first = once("sft-scores", judge_valued, data, start, start, None, label=session.first, scorer=scorer)
    once("base-scores", judge_valued, data, None, start, None, label="base", scorer=scorer)
    judged, players = [first], {"sft": start}

    for t in range(settings_of(session).iterations):
        if used_up(session, settings_of(session), t):
            break
        played = once(f"{t}/played", play_groups, data, player, iteration=t)  # y ~ p_θt
        rewards = once(f"{t}/rewards", reward, played, scorer=scorer)
        scored = once(f"{t}/scored", score_groups, data, player, start, played, rewards, iteration=t)  # A, log p_θt
        if not scored.facts["groups"]:
            break
        player = once(f"{t}/player", improve, player, scored, data, iteration=t)  # θ_{t+1}
        scores = once(f"{t}/scores", judge_valued, data, player, start, first, label=f"θ_{t + 1}", scorer=scorer)
        judged.append(scores)
        players[str(t)] = player
        tidy(session, judged, players, metric=metric)

    best = once("best", choose, *judged, metric=metric)
    examination(session, data, start, players[best.facts["player"]], player, scorer)
    return best


def settled_reinforce(config: Config) -> Config:
    """The config, if it can be learnt so; else ConfigError, before anything is loaded."""
    generation = config.generation
    if generation.temperature != 1 or generation.top_p != 1:
        raise ConfigError(
            f"generation.temperature {generation.temperature:g} and top_p {generation.top_p:g}: reinforce learns from "
            "samples of the player itself; set both to 1"
        )
    return config
