"""START HERE: self-play fine-tuning, Algorithm 1 of Chen et al. 2024 (arXiv 2401.01335).

    input   prompts x_i with real answers y_i;  θ_0 = the base after supervised fine-tuning;  T iterations
    for t = 0 … T-1
        play    y'_i ~ p_θt(·|x_i) for every i                      the frozen opponent answers
        learn   θ_{t+1} = argmin_θ  Σ_i  ℓ( λ·[log p_θ(y_i|x_i)  - log p_θt(y_i|x_i)]
                                          - λ·[log p_θ(y'_i|x_i) - log p_θt(y'_i|x_i)] )
    output  θ_T; here, the best of θ_0 … θ_T on held-out data

A player is a small adapter on one frozen base (models/players.py). The opponent's log-probabilities are
computed once (`score_pairs`), so learning holds one model; the margin and every ℓ are in
objectives/pairwise.py. `once` makes a phase or finds it finished: resuming a killed run is calling this again.
The `rules` are Algorithm 1's play, score_pairs and learn; a study's control arms (controls.py) break one of them.
A `scorer`, if there is one, judges too, and may choose, end an iteration, or leave pairs out (scoring.py).
"""

from __future__ import annotations

from sparring.controls import RULES
from sparring.evaluation.choose import choose, tidy
from sparring.evaluation.examine import examination
from sparring.evaluation.judge import judge
from sparring.evaluation.quantisation import quantisation_cost
from sparring.learning import fine_tune
from sparring.opponent import converged
from sparring.preparing import prepare_data
from sparring.run import Phase
from sparring.scoring import valuing
from sparring.session import Session


def self_play(session: Session) -> Phase:
    """Run Algorithm 1; returns the phase that says which player is best and why."""
    once, scorer = session.once, valuing(session)
    data = once("data", prepare_data)
    if session.quantised:
        once("quantisation", quantisation_cost, data)
    start = opponent = once("sft", fine_tune, data)  # θ_0
    scores = once("sft-scores", judge, data, start, start, None, label=session.first, iteration=None)
    base = once("base-scores", judge, data, None, start, None, label="base", iteration=None)
    judged, players, before = [scorer.judge(data, scores)], {"sft": start}, None
    scorer.judge(data, base)
    rules = RULES[session.config.selfplay.negatives]

    for t in range(session.config.selfplay.iterations):
        played = once(f"{t}/played", rules.play, data, opponent, iteration=t)  # y' ~ p_θt
        pairs = once(f"{t}/pairs", rules.score_pairs, data, opponent, played, before, iteration=t)  # log p_θt
        pairs = pairs if converged(pairs) else scorer.kept(pairs, t)
        if converged(pairs):
            break
        told = scorer.start_of(scores)
        player = once(f"{t}/player", rules.learn, opponent, pairs, data, scores, *told, iteration=t)  # θ_{t+1}
        scores = once(f"{t}/scores", judge, data, player, start, scores, label=f"θ_{t + 1}", iteration=t)
        judged.append(scorer.judge(data, scores))
        players[str(t)] = player
        opponent, before = player, played  # the student becomes the opponent
        tidy(session, judged, players)

    best = once("best", choose, *judged)
    examination(session, data, start, players[best.facts["player"]], opponent, scorer.examiner)
    return best
