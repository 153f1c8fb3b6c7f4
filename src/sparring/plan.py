"""`sparring check`: what a run would do, seen before it does it. Loads the base, trains nothing, writes nothing.

Each verb has a file in planning/ that says what it would do and what that takes; what all share is put around it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from sparring.asked import asked_study
from sparring.config import Config
from sparring.job import Found, identify, run_folder
from sparring.models.base import Base, context_of, load_base, read_config
from sparring.models.quantised import count_parameters
from sparring.planning import dpo, reinforce, reward, selfplay
from sparring.planning.sides import Sides, read_sides
from sparring.planning.words import FEW, Draft, costs, counted, head, indent
from sparring.rewarding import wanted_scorer
from sparring.rewards.build import check_scorer
from sparring.saving import saving_lines
from sparring.verbs import verb_of

DRAFTS: dict[str, Callable[[Found, Base, Sides], Draft]] = {
    "run": selfplay.draft,
    "dpo": dpo.draft,
    "reinforce": reinforce.draft,
    "reward": reward.draft,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan as text for people and as facts for machines."""

    text: str
    facts: dict[str, Any]


def plan(config: Config) -> Plan:
    """Read config, data and base, time a few passes, and say what the config's verb will do. Raises as it would."""
    found, verb = identify(config), verb_of(config)
    config, renderer = found.config, found.renderer
    if verb == "reinforce" or ((config.scorer is not None or config.evaluation.best_of > 1) and verb != "reward"):
        check_scorer(wanted_scorer(config), renderer, found.same["base fingerprint"])
    context = context_of(read_config(found.base_folder, config.model))
    sides = read_sides(config, found.loaded, renderer, context, alone=verb == "reward")
    base = load_base(found.base_folder, config.model, renderer)
    parameters = count_parameters(base.model)
    draft = DRAFTS[verb](found, base, sides)
    facts = {
        "verb": verb,
        "run": str(run_folder(config)),
        "parameters": parameters,
        "counts": sides.counts,
        "tokens": draft.lengths,
        "estimate": draft.estimate,
        "config": config.model_dump(mode="json"),
    }
    few = [f"note: only {draft.held_out} held-out rows: intervals will be rough, or missing"]
    lines = [
        *head(found, base, parameters, draft.estimate["trainable"]),
        *draft.about,
        *draft.steps,
        *([_study(config)] if config.compare is not None else []),
        *saving_lines(config, base, draft.estimate),
        *(few if draft.held_out < FEW else []),
        *draft.notes,
    ]
    parts = [
        "\n".join(lines),
        counted(sides.counts, draft.lengths),
        draft.example,
        costs(draft.estimate),
        "config\n" + indent(yaml.safe_dump(facts["config"], sort_keys=False, allow_unicode=True)),
    ]
    return Plan("\n\n".join(parts), facts)


def _study(config: Config) -> str:
    """What `sparring compare` makes of the config."""
    _, asked, arms = asked_study(config)
    alike = f"at equal {asked.match}" if asked.axis is None else f"along {asked.axis.key}, at the same data"
    tested = sum(arm.best_of > 1 for arm in arms)
    ranked = f"; {tested} of them train nothing: the best of n answers of another's players" if tested else ""
    return (
        f"then: {len(arms)} arms × {len(asked.seeds)} seeds {alike}, each run of about the time estimated below; "
        f"{asked.target} against {asked.reference} in {asked.primary}, each arm's value tried on "
        f"{min(asked.tune_seeds, len(asked.seeds))} of the seeds{ranked}"
    )
