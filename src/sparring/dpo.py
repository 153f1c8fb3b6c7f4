"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): self-play's machine on people's pairs.

    input   pairs (x_i, chosen y_i, rejected y'_i);  θ_0 = `start`, or the base after fine-tuning on chosen answers
    score   log p_θ0 of both answers, once: θ_0 is the reference
    learn   θ_1 = argmin_θ  Σ_i  w_i ℓ( β·[log p_θ(y_i|x_i)  - log p_θ0(y_i|x_i)]
                                      - β·[log p_θ(y'_i|x_i) - log p_θ0(y'_i|x_i)] )
    output  θ_0 or θ_1, whichever is better on held-out pairs

One iteration of selfplay.py with other pairs: nobody plays, the reference is in the opponent's place, and `learn`
and ℓ are the same. So the folder is the same too: 0/player is the player, and every verb takes it.
"""

from __future__ import annotations

from functools import partial

from sparring.config import Config
from sparring.config_dpo import DPOConfig, reference_of
from sparring.configfile import build_config
from sparring.evaluation.examine import examination
from sparring.evaluation.judge import judge
from sparring.evaluation.preferred import choose_preferred, preferred
from sparring.evaluation.quantisation import quantisation_cost
from sparring.learning import fine_tune, learn
from sparring.preparing import prepare_pairs
from sparring.reference import score_reference
from sparring.run import Phase
from sparring.scoring import valuing
from sparring.session import Session


def settled_dpo(config: Config) -> Config:
    """The config with `selfplay` as its section `dpo` asks; of what `selfplay` said only a budget stays."""
    settings = config.dpo or DPOConfig()
    tree = config.model_dump(mode="json", exclude_unset=True)
    play = settings.as_selfplay()
    if config.selfplay.budget is not None:
        play["budget"] = config.selfplay.budget.model_dump(mode="json")
    if settings.select != "preference":
        tree["evaluation"] = {**tree.get("evaluation", {}), "select": settings.select}
    return build_config({**tree, "dpo": settings.model_dump(mode="json"), "selfplay": play})


def prefer(session: Session) -> Phase:
    """Learn from preference pairs; returns the phase that says which player is better and why."""
    once, config, scorer = session.once, session.config, valuing(session)
    session.run.tell({"event": "reference", "text": reference_of(config.start, config.sft.epochs, config.model.base)})
    data = once("data", prepare_pairs)
    if session.quantised:
        once("quantisation", quantisation_cost, data)
    start = once("sft", fine_tune, data)  # θ_0, the reference
    before = once("sft-scores", judge, data, start, start, None, label=session.first, iteration=None)
    base = once("base-scores", judge, data, None, start, None, label="base", iteration=None)
    pairs = once("0/pairs", score_reference, data, start)  # log p_θ0
    player = once("0/player", learn, start, pairs, data, before, iteration=0)  # θ_1
    scores = once("0/scores", judge, data, player, start, None, label="θ_1 (DPO)", iteration=0)
    told = once("0/preferred", partial(preferred, reference=start), data, pairs, player)
    judged = [scorer.judge(data, one) for one in (before, base, scores)]
    best = once("best", choose_preferred, judged[0], judged[2], told)
    examination(session, data, start, start if best.facts["player"] == "sft" else player, player, scorer.examiner)
    return best
