"""What the phases of one run share: the config, the run folder, the tokenizer, and the base once it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sparring.config import Config
from sparring.crew import Crew
from sparring.data.load import Loaded
from sparring.data.messages import Renderer
from sparring.data.pairs import Prompt, Rows
from sparring.files import digest
from sparring.models.base import load_base, read_config
from sparring.models.players import Player, Ring
from sparring.models.quantised import quantisation
from sparring.run import Event, Phase, Run


@dataclass
class Session:
    """One run in progress. The base is loaded when the first phase asks for the ring, and only once."""

    config: Config
    run: Run
    renderer: Renderer
    base_folder: Path
    loaded: Loaded

    @cached_property
    def ring(self) -> Ring:
        """The base in memory, with room for one player at a time."""
        base = load_base(self.base_folder, self.config.model, self.renderer)
        return Ring(base, self.config.method, self.config.model.base)

    @cached_property
    def settings(self) -> Any:
        """The base's transformers config."""
        return read_config(self.base_folder, self.config.model)

    @property
    def quantised(self) -> str:
        """How the base's weights will lie in memory; empty if they are not quantised."""
        return quantisation(self.settings, self.config.model)

    @property
    def first(self) -> str:
        """What theta_0 is called: how it came about."""
        if self.config.start is not None:
            return "θ_0 (start)"
        return "θ_0 (SFT)" if self.config.sft.epochs else "θ_0 (no SFT)"

    @property
    def trains(self) -> bool:
        """Whether anything is trained in this run; an import only measures."""
        config = self.config
        return bool(config.selfplay.iterations or (config.sft.epochs and config.start is None))

    @property
    def crew(self) -> Crew:
        """The processes that work on this run."""
        return self.run.crew

    def once(self, name: str, make: Callable[..., Event | None], *inputs: Phase | None, **settings: Any) -> Phase:
        """`Run.once` with this session as the first argument of `make`."""
        return self.run.once(name, partial(make, self), *inputs, **settings)

    def renew(self, name: str, make: Callable[..., Event | None], *inputs: Phase | None, **settings: Any) -> Phase:
        """`Run.renew` with this session as the first argument of `make`."""
        return self.run.renew(name, partial(make, self), *inputs, **settings)

    def seed(self, *parts: Any) -> int:
        """A 31-bit seed for one purpose, from the run's seed."""
        return int(digest([self.config.seed, *parts]), 16) % 2**31

    def player(self, phase: Phase) -> Player:
        """The player that a phase made, on which others are held as this run says."""
        return replace(Player.load(phase.folder), hold=self.config.selfplay.hold)

    @staticmethod
    def prompts(data: Phase, side: str) -> Rows[Prompt]:
        """The `train`, `eval` or `test` examples of the data phase."""
        return Rows([data.folder / f"{side}.arrow"], Prompt)
