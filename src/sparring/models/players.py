"""Players: adapters on one frozen base, which is in memory once; with full fine-tuning, the base's own weights.

A player is a chain of adapters. How the chain grows is `selfplay.hold` (theta_t in each case, never the
base with its adapters off):

    continue   one adapter; the next player starts as its copy and is trained on    rank r
    merge      every adapter merged into the base; a new zero adapter is trained    rank (t+1)·r
    stack      every adapter stays, frozen; a new zero adapter is trained beside    rank (t+1)·r
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.errors import ConfigError, LawBroken, ModelError
from sparring.files import digest, read_json, write_atomic
from sparring.methods import Settings, method_of
from sparring.models.adapters import (
    attach,
    fingerprint_tensors,
    quiet,
    read_adapter,
    tensors_of,
    without_copies,
    write_adapter,
)
from sparring.models.base import Base
from sparring.models.merged import Folded, trained_whole, unwrap
from sparring.models.player import ABOUT, Player, sign
from sparring.models.whole import WEIGHTS, read_whole, restore, settings_of_model, weights_of, write_whole

__all__ = ["Player", "Ring"]

TRAINED = "player"


class Ring:
    """The one base in memory, on which players take their turns.

    `model` is what to call; which player it is, is `seated`, the fingerprint of the weights in memory.
    """

    def __init__(self, base: Base, method: Settings, base_name: str) -> None:
        self.base = base
        self.method = method
        self.row = method_of(method)
        self.base_name = base_name
        self.model: Any = base.model
        self.seated = Player.untrained(base).fingerprint
        self._wrapped: Any = None
        self._folded = Folded(base.model)
        self._settings = settings_of_model(base.model)
        self._whole = False  # the base's own weights have been changed

    @property
    def context(self) -> int:
        """The most tokens that prompt and answer may have together, beside a player's virtual ones."""
        return self.base.context - self.method.virtual

    # ------------------------------------------------------------ taking turns

    def seat(self, player: Player, merged: bool = False) -> Any:
        """Put a player on the base, frozen, in eval mode; returns the model.

        merged  add the adapters to the base's weights until the next turn: faster, and equal but for rounding.
                Where that cannot be (models/merged.py), would change another weight too (a tied head), or would have to
                be quantised again, they stay beside the base.

        Raises LawBroken if the weights now in memory are not those the player was saved with.
        """
        whole = bool(player.adapters) and (player.adapters[-1] / WEIGHTS).exists()
        self._clear(keep_whole=whole)
        if whole:
            prints = [self._take_on(player.adapters[-1])]
        elif player.adapters and player.hold == "merge":
            prints = [self._merge(folder) for folder in player.adapters]
        else:
            prints = [self._attach(folder, f"theta_{index}") for index, folder in enumerate(player.adapters)]
            self._activate([f"theta_{index}" for index in range(len(prints))])
            if merged and prints and self._folds():
                self._fold()
        self._freeze()
        self.seated = digest([self.base.fingerprint, *prints])
        if self.seated != player.fingerprint:
            raise LawBroken(
                f"law 11: the weights in memory ({self.seated}) are not those of the player asked for "
                f"({player.fingerprint}); its adapter files or the base have been changed since"
            )
        return self.model

    def challenge(self, opponent: Player, seed: int, dropout: float = 0.0) -> Any:
        """Seat a trainable player that equals `opponent`, exactly if its method starts so; returns the model."""
        self.seat(opponent)
        if self.row.whole:
            self._whole = True
            self.model.requires_grad_(True)
            return self.model
        if opponent.hold == "continue" and opponent.adapters:
            self._train("theta_0", dropout)
            return self.model
        torch.manual_seed(seed)
        self._add(TRAINED, self._fresh(dropout))
        if self.row.begin is not None:
            try:
                self.row.begin(self._wrapped, TRAINED)
            except ValueError as error:
                raise ConfigError(f"method {self.row.name} does not fit this base ({error})") from error
        if opponent.hold == "merge":
            self._refuse_tied()
        active = [] if opponent.hold == "merge" else [f"theta_{index}" for index in range(len(opponent.adapters))]
        self._activate([*active, TRAINED])
        self._train(TRAINED, dropout)
        return self.model

    def save(self, folder: Path, opponent: Player, run_folder: Path, name: str) -> Player:
        """Write the challenger's weights to `folder`, which will be renamed to run_folder/name.

        The folder is an ordinary PEFT adapter, or a model in Hugging Face layout, and holds player.json with the
        chain it stands on.
        """
        kept = () if opponent.hold == "continue" else opponent.adapters
        if self.row.whole:
            tensors = weights_of(self.base.model)
            write_whole(folder, self._settings, tensors)
        else:
            trained = "theta_0" if opponent.hold == "continue" and opponent.adapters else TRAINED
            tensors = tensors_of(self._wrapped, trained)
            write_adapter(folder, self._wrapped.peft_config[trained], tensors, self.base_name)
        home, prints = run_folder / name, [read_json(step / ABOUT)["adapter"] for step in kept]
        return sign(folder, self.base, opponent.hold, kept, [*prints, fingerprint_tensors(tensors)], home)

    def save_start(self, folder: Path, hold: str, seed: int, run_folder: Path, name: str) -> None:
        """Write theta_0 that nothing has trained: the base itself, or a fresh adapter, where that is not the base."""
        if self.row.starts_as_base:
            fingerprint = Player.untrained(self.base, hold).fingerprint
            about = {"base": self.base.fingerprint, "hold": hold, "chain": [], "fingerprint": fingerprint}
            write_atomic(folder / ABOUT, json.dumps(about, indent=2) + "\n")
            return
        start = Player.untrained(self.base, hold)
        self.challenge(start, seed)
        self.save(folder, start, run_folder, name)

    def adopt(self, given: Path, folder: Path, hold: str, run_folder: Path, name: str) -> None:
        """Write an adapter that was made elsewhere as theta_0; ModelError if it does not fit this base."""
        self._clear()
        config, tensors = read_adapter(given)
        kept = getattr(config, "modules_to_save", None) or ()
        tensors = without_copies(self.base.model, tensors, kept, given)
        self._add(TRAINED, config)
        attach(self._wrapped, TRAINED, tensors, given)
        self.save(folder, Player.untrained(self.base, hold), run_folder, name)

    def trainable(self) -> dict[str, Tensor]:
        """The parameters that are being trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def size(self) -> int:
        """How many numbers are being trained."""
        parts = {True: 0, False: 0}
        for name, parameter in self.trainable().items():
            parts[".lora_" in name] += parameter.numel()
        return parts[False] + int(parts[True] * self.row.learns)

    # ------------------------------------------------------------ the base, and what is on it

    def _clear(self, keep_whole: bool = False) -> None:
        """Back to the pristine base, bit for bit. keep_whole: its weights are about to be replaced all the same."""
        if self._wrapped is not None:
            unwrap(self._wrapped, self.base.model)
            self._wrapped = None
        self._folded.undo()
        if self._whole and not keep_whole:
            restore(self.base)
            self._whole = False
        self.model = self.base.model

    def _fresh(self, dropout: float) -> Any:
        if self.row.fresh is None:
            raise RuntimeError("full fine-tuning has no adapter")
        try:
            return self.row.fresh(self.base.model, self.method, dropout)
        except ValueError as error:
            raise ConfigError(f"method {self.row.name} does not fit this base ({error})") from error

    def _add(self, name: str, config: Any) -> None:
        from peft import get_peft_model

        with quiet():
            try:
                if self._wrapped is None:
                    self._wrapped = get_peft_model(self.base.model, config, adapter_name=name)
                else:
                    self._wrapped.add_adapter(name, config)
            except ValueError as error:
                raise ConfigError(_unfit(self.method, " ".join(str(error).split())[:300])) from error
        self.model = self._wrapped

    def _attach(self, folder: Path, name: str) -> str:
        """Load an adapter folder under a name; returns the fingerprint of its weights in memory."""
        self._belongs(folder)
        config, tensors = read_adapter(folder)
        self._add(name, config)
        attach(self._wrapped, name, tensors, folder)
        return fingerprint_tensors(tensors_of(self._wrapped, name))

    def _take_on(self, folder: Path) -> str:
        """Make the base's weights those of a whole player; returns their fingerprint."""
        self._belongs(folder)
        self._whole = True
        return read_whole(folder, self.base.model)

    def _belongs(self, folder: Path) -> None:
        if read_json(folder / ABOUT)["base"] != self.base.fingerprint:
            raise ModelError(f"the player {folder} was trained on another base; give the base it belongs to")

    def _merge(self, folder: Path) -> str:
        """Merge an adapter into the base; returns the fingerprint of its weights."""
        fingerprint = self._attach(folder, "merged")
        self._refuse_tied()
        self._fold()
        return fingerprint

    def _fold(self) -> None:
        """Merge what is active into the base, which can be undone."""
        self._folded.merge(self._wrapped)
        self._wrapped = None
        self.model = self.base.model

    def _folds(self) -> bool:
        """Whether what is active may be merged into the base in place."""
        apart = self._adapts_tied() or bool(trained_whole(self._wrapped))
        return self.row.merges and not self.base.quantised and not apart

    def _adapts_tied(self) -> bool:
        """An adapter beside the head changes the head; merged into a matrix shared with the embedding, both."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        ends = (self.base.model.get_input_embeddings(), self.base.model.get_output_embeddings())
        adapted = [end for end in ends if isinstance(end, BaseTunerLayer)]
        first, last = (end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends)
        return bool(adapted) and first.weight is last.weight

    def _refuse_tied(self) -> None:
        if self._adapts_tied():
            raise ConfigError(
                "method.target_modules names the embedding or the head, which are one matrix in this base and cannot "
                "be merged apart; leave them out, or set selfplay.hold to continue or stack"
            )

    def _activate(self, names: list[str]) -> None:
        if names:
            self._wrapped.base_model.set_adapter(names)

    def _freeze(self) -> None:
        self.model.requires_grad_(False)
        self.model.eval()

    def _train(self, name: str, dropout: float) -> None:
        """Only the named adapter trains, with the dropout that this training asks for; all else drops nothing."""
        self.model.requires_grad_(False)
        for key, parameter in self.model.named_parameters():
            if f".{name}." in f"{key}.":  # a matrix's name goes on (.weight), an embedding's ends here
                parameter.requires_grad_(True)
        for key, module in self.model.named_modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout if key.endswith(f"dropout.{name}") else 0.0
        if self.row.train is not None:
            self.row.train(self._wrapped, name)


def _unfit(method: Settings, why: str) -> str:
    """What is said when an adapter cannot be put on a base."""
    modules = getattr(method, "target_modules", None)
    if modules is None:
        return f"method {method.name} does not fit this base ({why})"
    linear = ", or all-linear" if "all-linear" in str(type(method).model_fields["target_modules"].default) else ""
    return f"method.target_modules {modules!r} does not fit this base ({why}); give module names of the base{linear}"
