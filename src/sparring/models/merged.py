"""Merging what is active into the base's weights, and taking it out again bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Folded:
    """The weights of one base that merging has changed, as they were; and modules that it has replaced."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._weights: dict[str, Tensor] = {}
        self._modules: dict[str, nn.Module] = {}

    def merge(self, wrapped: Any) -> None:
        """Merge the active adapters of a PeftModel around this base into it, and unwrap it."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        for path, module in wrapped.named_modules():
            name = path.removeprefix("base_model.model.")
            if isinstance(module, BaseTunerLayer):
                for key, weight in module.get_base_layer().named_parameters():
                    self._weights.setdefault(f"{name}.{key}", weight.detach().clone())
            elif isinstance(module, AuxiliaryTrainingWrapper):
                self._modules.setdefault(name, module.original_module)
        wrapped.merge_and_unload(safe_merge=True)

    def undo(self) -> None:
        """Back to the base as it was."""
        for name, module in self._modules.items():
            self.model.set_submodule(name, module)
        with torch.no_grad():
            for name, weight in self._weights.items():
                self.model.get_parameter(name).copy_(weight)
        self._weights, self._modules = {}, {}
