"""What a method is: its settings, how its adapter is made, and what can be done with its players.

Nothing here needs torch: the table is read when a config is checked, and by `sparring methods`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sparring.section import Section


class Settings(Section):
    """Settings of a method. Each has its own; these are what the others ask of any."""

    name: str

    @property
    def sft_dropout(self) -> float:
        """Dropout while fine-tuning; never in self-play, where the player must start equal to the opponent."""
        return 0.0

    @property
    def virtual(self) -> int:
        """Virtual tokens that a player puts before every prompt."""
        return 0

    @property
    def summary(self) -> str:
        """The method and its size in a few words."""
        return self.name

    @property
    def beside(self) -> bool:
        """Whether modules are trained whole beside the adapter, which then cannot be merged in place."""
        return False

    def widened(self, times: int) -> dict[str, Any] | None:
        """Settings with so many times as many trained numbers, for a control arm; None: it has no such settings."""
        return None


Home = Literal["adapter", "merged", "no"]  # how a player gets into another engine: as it is, merged, not at all


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table: what can be done with a method's players is written down once, here.

    What trains is the adapter, and nothing of the base. A player is copied by its tensors: as its file holds them, or,
    where it is the whole model, by staying in memory.

    settings        its section of the config
    what, source    a line for people, and where the method comes from
    fresh           (base, settings, dropout) → the PEFT config of a fresh adapter; None: the base's own weights train
    begin           (model, adapter's name) → None: what a fresh adapter needs beyond its config
    train           (model, adapter's name) → None: what training it needs each time
    starts_as_base  a fresh adapter changes nothing, bit for bit; else θ_0 without SFT is a fresh adapter, not the base
    stacks          adapters stay in force beside each other (`selfplay.hold: stack`)
    merges          an adapter can be added to the base's weights
    packs           packed rows give the numbers of separate ones, where the base can be packed at all
    quantised       it can stand on a 4- or 8-bit base
    processes       several processes share its training (each holds the whole model)
    learns          the share of an adapter's numbers that learn; the others must stay, so weight decay must be 0
    gguf, vllm      how its players get there
    lr              fine-tuning learning rates worth trying on small models; self-play takes a tenth
    read            what adapter_config.json says → settings, if the adapter is of this method; else None
    ratio           (settings) → how many times faster B matrices learn than the rest (LoRA+)
    """

    settings: type[Settings]
    what: str
    source: str
    fresh: Callable[[Any, Any, float], Any] | None
    begin: Callable[[Any, str], None] | None = None
    train: Callable[[Any, str], None] | None = None
    starts_as_base: bool = True
    stacks: bool = True
    merges: bool = False
    packs: bool = True
    quantised: bool = True
    processes: bool = True
    learns: float = 1.0
    gguf: Home = "no"
    vllm: Home = "no"
    lr: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    read: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda about: None
    ratio: Callable[[Any], float] = lambda settings: 1.0

    @property
    def name(self) -> str:
        """What the config calls it."""
        return str(self.settings.model_fields["name"].default)

    @property
    def whole(self) -> bool:
        """Whether a player is the whole model: no adapter, and no base that stays as it is."""
        return self.fresh is None

    def holds(self, hold: str) -> bool:
        """Whether players can be held so (`selfplay.hold`)."""
        if hold == "continue":
            return True
        return self.starts_as_base and not self.whole and (self.merges if hold == "merge" else self.stacks)


def target(modules: str | list[str]) -> str | list[str]:
    """What PEFT takes for modules given by name, list, pattern or `all-linear`; a plain word is a name."""
    if isinstance(modules, str) and modules != "all-linear" and re.fullmatch(r"\w+", modules):
        return [modules]
    return modules


def readable(modules: str | list[str] | None) -> str | list[str] | None:
    """Check that modules given as a pattern are a regular expression; raises ValueError with a sentence."""
    if isinstance(modules, str):
        try:
            re.compile(modules)
        except re.error as error:
            raise ValueError(
                f'method.target_modules "{modules}" is not a regular expression ({error}); give a name, a list of '
                "names, a pattern that matches whole module paths, or all-linear"
            ) from None
    return modules
