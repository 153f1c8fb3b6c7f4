"""What can be done in a run, by the verb that its config is for: one table. Another verb is a file and a row.

All share what is around them: the config, the folder, phases that a kill does not undo, players, the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import Config
from sparring.data.load import Loaded
from sparring.data.messages import Renderer
from sparring.data.preferences import load_answers, load_preferences
from sparring.dpo import prefer, settled_dpo
from sparring.reinforce import reinforce, settled_reinforce
from sparring.report.page import write_report
from sparring.report.reward_page import write_reward_report
from sparring.reward import train_reward
from sparring.run import Phase
from sparring.selfplay import self_play
from sparring.session import Session
from sparring.verbs import verb_of

# Keys that came later: they count where they are used, so that older run folders can be gone on with.
LATER = {"reinforce": ("select",)}


def _examples(config: Config, renderer: Renderer) -> Loaded:
    return load_answers(config.data, config.seed, renderer)


def _pairs(config: Config, renderer: Renderer) -> Loaded:
    return load_preferences(config.data, config.seed, renderer)


@dataclass(frozen=True, slots=True)
class Kind:
    """A verb's row.

    work     what is done in an open session
    read     finds its data
    settle   the config as the work takes it; ConfigError for what cannot be done so
    decides  what decides the result beside the settings that do in every run
    report   writes the page from the run's folder
    """

    work: Callable[[Session], Phase]
    read: Callable[[Config, Renderer], Loaded] = _examples
    settle: Callable[[Config], Config] = lambda config: config
    decides: Callable[[Config], dict[str, Any]] = lambda config: {}
    report: Callable[[Path], Path] = write_report


KINDS: dict[str, Kind] = {
    "run": Kind(self_play),
    "dpo": Kind(prefer, _pairs, settled_dpo, lambda config: _section(config, "dpo")),
    "reinforce": Kind(reinforce, settle=settled_reinforce, decides=lambda config: _section(config, "reinforce")),
    "reward": Kind(
        train_reward,
        _pairs,
        decides=lambda config: {"made by": "sparring reward", **_section(config, "reward")},
        report=write_reward_report,
    ),
}


def kind_of(config: Config) -> Kind:
    """The row of the verb that a config is for."""
    return KINDS[verb_of(config)]


def _section(config: Config, name: str) -> dict[str, Any]:
    section = getattr(config, name)
    unused = {key for key in LATER.get(name, ()) if getattr(section, key) == type(section).model_fields[key].default}
    return {name: section.model_dump(mode="json", exclude=unused)}
