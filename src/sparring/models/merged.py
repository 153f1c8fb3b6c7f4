"""Merging what is active into the base's weights, and taking it out again bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Folded:
    """The weights of one base that merging has changed, as they were."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._weights: dict[str, Tensor] = {}

    def merge(self, wrapped: Any) -> None:
        """Merge the active adapters of a PeftModel around this base into it, and unwrap it."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for path, module in wrapped.named_modules():
            if isinstance(module, BaseTunerLayer):
                name = path.removeprefix("base_model.model.")
                for key, weight in module.get_base_layer().named_parameters():
                    self._weights.setdefault(f"{name}.{key}", weight.detach().clone())
        wrapped.merge_and_unload(safe_merge=True)

    def undo(self) -> None:
        """Back to the base as it was."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                self.model.get_parameter(name).copy_(weight)
        self._weights = {}


def unwrap(wrapped: Any, model: Any) -> None:
    """Take every adapter off a model, and put the base's own modules back.

    PEFT's `unload` leaves a module trained whole in the base's place, and refuses some methods on a quantised base.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    originals = {path: module.original_module for path, module in trained_whole(wrapped).items()}
    for path, module in wrapped.named_modules():
        if isinstance(module, BaseTunerLayer):
            originals.setdefault(path.removeprefix("base_model.model."), module.get_base_layer())
    for path, module in originals.items():
        model.set_submodule(path, module)
    vars(model).pop("peft_config", None)  # PEFT's mark on a model that has adapters


def trained_whole(wrapped: Any) -> dict[str, Any]:
    """PEFT's wrappers around modules that are trained whole (`modules_to_save`), by path in the base."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = {path: module for path, module in wrapped.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)}
    return {path.removeprefix("base_model.model."): module for path, module in found.items()}
