"""What is exported: a run's player on its base as it is in its folder, never quantised, and what it makes of answers.

Whatever leaves the run is held against these numbers.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparring.browse import Opened, open_player, read_settings
from sparring.config import Config, ModelConfig
from sparring.data.messages import Renderer
from sparring.data.pairs import Prompt, Rows
from sparring.errors import InputError, ModelError, RunError
from sparring.methods import method_of
from sparring.models.adapters import settings_of
from sparring.models.base import DTYPES, Base, find_base, load_base, load_renderer, read_config
from sparring.models.players import Player, Ring
from sparring.models.quantised import described, stored_as
from sparring.models.scoring import score_tokens
from sparring.models.whole import WEIGHTS as WHOLE
from sparring.names import player_name

ROWS = 256  # held-out answers that everything is measured on, at most


@dataclass
class Source:
    """A player that is taken out of its run.

    config   the run's
    model    its section `model`, with the base not quantised and in the dtype that is exported
    base     the base's folder
    label    what the run's player is called; own: log p [N] of every token of the real answers under it
    plain    what base and player are called in the dtype that is exported; attached: log p [N] under them
    before   log p [N] under the base alone, in that dtype
    """

    run: Path
    name: str
    config: Config
    model: ModelConfig
    base: Path
    player: Player
    chat: bool
    prompts: Sequence[Prompt]
    label: str
    own: list[float]
    plain: str
    attached: list[float]
    before: list[float]
    fingerprint: str
    _ring: Ring | None

    @property
    def ring(self) -> Ring:
        """The base in memory."""
        if self._ring is None:
            raise RuntimeError("the base was let go")
        return self._ring

    def release(self) -> None:
        """Let the base go: what was written is loaded now."""
        self._ring = None
        gc.collect()

    @property
    def whole(self) -> bool:
        """Whether the player is a whole model, and no adapter."""
        return (self.player.adapters[-1] / WHOLE).exists()

    @property
    def mark(self) -> dict[str, str]:
        """What an export says of where it comes from."""
        return {"made by": "sparring export", "player": self.player.fingerprint, "base": self.fingerprint}

    def renderer(self) -> Renderer:
        """The tokenizer and the template that the run used; a tokenizer of one's own, to change and write."""
        return load_renderer(self.base, self.model)


def base_of_run(run: Path) -> Path | None:
    """The folder of a run's base, if it is a folder."""
    folder = Path(str(read_settings(run)["model"]["base"])).expanduser()
    return folder if folder.is_dir() else None


def take(run: Path, player: str, dtype: str | None, merging: bool = True) -> Source:
    """Load a player (best, sft, or an iteration's number) and measure it.

    dtype    fp32, bf16 or fp16; None: what the run computed in
    merging  it is to be merged: refuse at once what cannot be
    """
    name = player_name(run, player)
    if name == "base":
        raise InputError("the base has no adapter to merge; give --iteration best, sft, or an iteration's number")
    opened = open_player(run, name)
    folder = _checked(opened, merging)
    prompts: Sequence[Prompt] = Rows([run / "data" / "eval.arrow"], Prompt)[:ROWS]
    ring, tokens = opened.ring, opened.config.optimiser.micro_batch_tokens
    own = token_values(ring, opened.player, prompts, tokens)
    kind = "whole model" if ring.row.whole else "base + adapter"
    label = _label(ring.base, opened.config.model, "" if ring.row.whole else " + adapter")
    dtype = dtype or next(key for key, value in DTYPES.items() if value == ring.base.dtype)
    model = opened.config.model.model_copy(update={"quantise": "none", "dtype": dtype})
    config, who, chat = opened.config, opened.player, opened.chat
    stored = stored_as(read_config(folder, config.model))
    attached = own
    if not stored and (ring.base.quantised or ring.base.dtype != DTYPES[dtype]):
        fingerprint = ring.base.fingerprint
        del opened, ring  # one base in memory at a time
        gc.collect()
        base = load_base(folder, model, load_renderer(folder, model))
        # the one place where a player sits on another base than it was trained on: the same one, before it was
        # quantised, or in another dtype
        ring = Ring(replace(base, fingerprint=fingerprint), config.method, config.model.base)
        attached = token_values(ring, who, prompts, tokens)
    before = token_values(ring, Player.untrained(ring.base), prompts, tokens)
    plain = f"{kind} in {dtype}"
    values = (label, own, plain, attached, before)
    return Source(run, name, config, model, folder, who, chat, prompts, *values, ring.base.fingerprint, ring)


def token_values(ring: Ring, player: Player, prompts: Sequence[Prompt], tokens: int) -> list[float]:
    """log p [N] of every token of the real answers under a player. tokens: at once."""
    rows = [(prompt.prompt_ids, prompt.real_ids) for prompt in prompts]
    found = score_tokens(ring.seat(player), ring.base, rows, tokens)
    return [float(value) for answer in found for value in answer]


def _checked(opened: Opened, merging: bool) -> Path:
    """The base's folder, if this player can be handed over so."""
    if not opened.player.adapters:
        raise RunError("this player is the base itself (sft.epochs was 0), so there is nothing to merge or export")
    folder = find_base(opened.config.model)
    if not merging:
        return folder
    for adapter in opened.player.adapters:
        if (adapter / WHOLE).exists():
            continue  # it is a model already, and is only written with a tokenizer
        method = settings_of(adapter)
        if not method_of(method).merges:
            raise RunError(
                f"{adapter} is an adapter of method {method.name}, which is no change of the base's weights and cannot "
                "be merged; use it beside the base, with PEFT (docs/methods.md)"
            )
    if kind := stored_as(read_config(folder, opened.config.model)):
        raise ModelError(
            f"model.base {opened.config.model.base} comes quantised ({kind}), and what it was before is not in its "
            "folder; merge into the base in 16 bits that it was made from, with PEFT"
        )
    return folder


def _label(base: Base, config: ModelConfig, adapter: str) -> str:
    dtype = next(name for name, value in DTYPES.items() if value == base.dtype)
    held = f"{described(base.quantised, config)} base" if base.quantised else "base"
    return f"the run's player: {held}{adapter} in {dtype}"
