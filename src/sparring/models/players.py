"""Players: adapters on one frozen base, which is in memory once.

A player is a chain of adapters. How the chain grows is `selfplay.hold` (theta_t in each case, never the
base with its adapters off):

    continue   one adapter; the next player starts as its copy and is trained on    rank r
    merge      every adapter merged into the base; a new zero adapter is trained    rank (t+1)·r
    stack      every adapter stays, frozen; a new zero adapter is trained beside    rank (t+1)·r
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sparring.config import MethodConfig
from sparring.errors import ConfigError, LawBroken, ModelError
from sparring.files import digest, read_json, write_atomic, written
from sparring.models.base import Base
from sparring.models.methods import adapter_config

TRAINED = "player"


@dataclass(frozen=True, slots=True)
class Player:
    """A chain of adapter folders, oldest first; an empty chain is the base itself.

    fingerprint  of the base and of every adapter's weights
    """

    adapters: tuple[Path, ...]
    hold: str
    fingerprint: str

    @staticmethod
    def untrained(base: Base, hold: str = "continue") -> Player:
        """The base itself as a player."""
        return Player((), hold, digest([base.fingerprint]))

    @staticmethod
    def load(folder: Path) -> Player:
        """A player from its folder; ModelError if it holds none."""
        if not (folder / "player.json").exists():
            raise ModelError(f"{folder} holds no player (player.json); give a folder that a run made")
        about = read_json(folder / "player.json")
        chain = tuple((folder / step).resolve() for step in about["chain"])
        return Player(chain, about["hold"], about["fingerprint"])


def fingerprint_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes of tensors, by name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


class Ring:
    """The one base in memory, on which players take their turns.

    `model` is what to call; which player it is, is `seated`, the fingerprint of the weights in memory.
    """

    def __init__(self, base: Base, method: MethodConfig, base_name: str) -> None:
        self.base = base
        self.method = method
        self.base_name = base_name
        self.model: Any = base.model
        self.seated = Player.untrained(base).fingerprint
        self._wrapped: Any = None
        self._pristine: dict[str, Tensor] = {}

    # ------------------------------------------------------------ taking turns

    def seat(self, player: Player, merged: bool = False) -> Any:
        """Put a player on the base, frozen, in eval mode; returns the model.

        merged  add the adapters to the base's weights until the next turn: faster, and equal but for rounding.
                Where that would change another weight too (a tied head), or what is merged would have to be
                quantised again, they stay beside the base.

        Raises LawBroken if the weights now in memory are not those the player was saved with.
        """
        self._clear()
        if player.adapters and player.hold == "merge":
            prints = [self._merge(folder) for folder in player.adapters]
        else:
            prints = [self._attach(folder, f"theta_{index}") for index, folder in enumerate(player.adapters)]
            self._activate([f"theta_{index}" for index in range(len(prints))])
            if merged and prints and not self.base.quantised and not self._adapts_tied():
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
        """Seat a trainable player that equals `opponent` exactly; returns the model."""
        self.seat(opponent)
        if opponent.hold == "continue" and opponent.adapters:
            self._require_grad("theta_0", dropout)
            return self.model
        torch.manual_seed(seed)
        self._add(TRAINED, self._fresh(dropout))
        if opponent.hold == "merge":
            self._refuse_tied()
        active = [] if opponent.hold == "merge" else [f"theta_{index}" for index in range(len(opponent.adapters))]
        self._activate([*active, TRAINED])
        self._require_grad(TRAINED, dropout)
        return self.model

    def save(self, folder: Path, opponent: Player, run_folder: Path, name: str) -> Player:
        """Write the challenger's adapter to `folder`, which will be renamed to run_folder/name.

        The folder is an ordinary PEFT adapter, and holds player.json with the chain it stands on.
        """
        trained = "theta_0" if opponent.hold == "continue" and opponent.adapters else TRAINED
        tensors = self._tensors(trained)
        settings = self._wrapped.peft_config[trained].to_dict()
        settings |= {"inference_mode": True, "base_model_name_or_path": self.base_name}
        with written(folder / "adapter_model.safetensors") as file:
            file.write(save(tensors, metadata={"format": "pt"}))
        write_atomic(folder / "adapter_config.json", json.dumps(_plain(settings), indent=2, sort_keys=True) + "\n")
        kept = () if opponent.hold == "continue" else opponent.adapters
        prints = [read_json(step / "player.json")["adapter"] for step in kept] + [fingerprint_tensors(tensors)]
        home = run_folder / name
        chain = [_relative(step, home) for step in kept] + ["."]
        about = {
            "base": self.base.fingerprint,
            "adapter": prints[-1],
            "hold": opponent.hold,
            "chain": chain,
            "fingerprint": digest([self.base.fingerprint, *prints]),
        }
        write_atomic(folder / "player.json", json.dumps(about, indent=2) + "\n")
        return Player((*kept, home), opponent.hold, about["fingerprint"])

    def save_untrained(self, folder: Path, hold: str) -> None:
        """Write the base itself as a player: an empty chain."""
        fingerprint = Player.untrained(self.base, hold).fingerprint
        about = {"base": self.base.fingerprint, "hold": hold, "chain": [], "fingerprint": fingerprint}
        write_atomic(folder / "player.json", json.dumps(about, indent=2) + "\n")

    def trainable(self) -> dict[str, Tensor]:
        """The parameters that are being trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    # ------------------------------------------------------------ adapters

    def _clear(self) -> None:
        """Back to the pristine base, bit for bit."""
        if self._wrapped is not None:
            self._wrapped.unload()
            self._wrapped = None
        with torch.no_grad():
            for name, weight in self._pristine.items():
                self.base.model.get_parameter(name).copy_(weight)
        self._pristine = {}
        self.model = self.base.model

    def _fresh(self, dropout: float) -> Any:
        return adapter_config(self.base.model, self.method, dropout)

    def _add(self, name: str, config: Any) -> None:
        from peft import get_peft_model

        with _peft_warnings():
            if self._wrapped is None:
                try:
                    self._wrapped = get_peft_model(self.base.model, config, adapter_name=name)
                except ValueError as error:
                    raise ConfigError(
                        f"method.target_modules {self.method.target_modules!r} does not fit this base "
                        f"({' '.join(str(error).split())[:200]}); give module names of the base, or all-linear"
                    ) from error
            else:
                self._wrapped.add_adapter(name, config)
        self.model = self._wrapped

    def _attach(self, folder: Path, name: str) -> str:
        """Load an adapter folder under a name; returns the fingerprint of its weights in memory."""
        from peft import PeftConfig, set_peft_model_state_dict

        about = read_json(folder / "player.json")
        if about["base"] != self.base.fingerprint:
            raise ModelError(f"the adapter {folder} was trained on another base; give the base it belongs to")
        self._add(name, PeftConfig.from_pretrained(str(folder)))
        try:
            weights = load_file(folder / "adapter_model.safetensors")
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"the adapter {folder} is damaged ({error}); remove the folder to make it again"
            ) from error
        with _peft_warnings():
            set_peft_model_state_dict(self._wrapped, weights, adapter_name=name)
        return fingerprint_tensors(self._tensors(name))

    def _merge(self, folder: Path) -> str:
        """Merge an adapter into the base; returns the fingerprint of its weights."""
        fingerprint = self._attach(folder, "merged")
        self._fold()
        return fingerprint

    def _fold(self) -> None:
        """Merge what is active into the base, keeping a pristine copy of the weights that change."""
        for module in self._lora_modules():
            weight = f"{module.replace('base_model.model.', '', 1)}.weight"
            plain = self._wrapped.get_parameter(f"{module}.base_layer.weight")
            self._pristine.setdefault(weight, plain.detach().clone())
        self._wrapped.merge_and_unload(safe_merge=True)
        self._wrapped = None
        self.model = self.base.model

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
                f"method.target_modules {self.method.target_modules!r} names the embedding or the head, which are "
                "one matrix in this base and cannot be merged apart; leave them out, or set selfplay.hold to "
                "continue or stack"
            )

    def _lora_modules(self) -> list[str]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [name for name, module in self._wrapped.named_modules() if isinstance(module, BaseTunerLayer)]

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self._wrapped, adapter_name=name, save_embedding_layers=False)
        return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}

    def _activate(self, names: list[str]) -> None:
        if names:
            self._wrapped.base_model.set_adapter(names)

    def _freeze(self) -> None:
        self.model.requires_grad_(False)
        self.model.eval()

    def _require_grad(self, name: str, dropout: float) -> None:
        """Only the named adapter trains, with the dropout that this training asks for; all else drops nothing."""
        self.model.requires_grad_(False)
        for key, parameter in self.model.named_parameters():
            if f".{name}." in f"{key}.":  # a matrix's name goes on (.weight), an embedding's ends here
                parameter.requires_grad_(True)
        for key, module in self.model.named_modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout if key.endswith(f".lora_dropout.{name}") else 0.0


def _relative(step: Path, home: Path) -> str:
    """`step` as seen from `home`, both in one run folder, so that the folder can be moved."""
    return Path(os.path.relpath(step.resolve(), home.resolve())).as_posix()


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """A PEFT config as JSON with sets in order, so that the same adapter gives the same bytes."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


@contextmanager
def _peft_warnings() -> Iterator[None]:
    """PEFT warns about what is done here on purpose (a second adapter on a wrapped model, tied heads)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
