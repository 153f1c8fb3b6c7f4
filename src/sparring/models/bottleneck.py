"""Bottleneck adapters in PEFT's own registry: the types HOULSBY and PFEIFFER.

    h + up(act(down(h)))        h: what a sublayer gives, after its output projection, before the residual is added

* Houlsby et al. 2019 (arXiv 1902.00751): after attention and after the feed-forward part of every layer.
* Pfeiffer et al. 2021 (AdapterFusion, arXiv 2005.00247): after the feed-forward part only.

Both have biases. Both were made for BERT, which normalises after the residual sum; its layer norms are neither
rebuilt around the adapter nor trained here. Where a base normalises what a sublayer gives (Gemma 2 and 3), the
adapter sits before that norm. `up` starts at exactly 0, so a fresh adapter is the identity, to the bit. Houlsby
et al. start near it, both matrices with a deviation of 1e-2; with `up` at 0 a small `down` would only slow the
start, so its deviation is 1/√D: what it gives is then of h's own size at any width.

A script that uses PEFT alone must `import sparring.models.bottleneck` before it loads such an adapter: else
PEFT stops with KeyError: 'HOULSBY'. A nonlinear adapter cannot be merged into the base: merging raises ValueError.

Shapes: B rows, T tokens, D the width of the base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]]
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}

# Output projections, by the ends of their paths: what they are called, and in what.
NAMES = {
    "attention": ("o_proj", "out_proj", "c_proj", "dense", "wo"),
    "feed-forward": ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "wo"),
}
OWNERS = {
    "attention": ("self_attn", "attn", "attention", "self_attention", "linear_attn"),
    "feed-forward": ("mlp", "ffn", "feed_forward", "mlp_block"),
}
PLACES = {"houlsby": ("attention", "feed-forward"), "pfeiffer": ("feed-forward",)}

BASE = "__base__"  # PEFT's word, among `adapter_names`, for no adapter
NO_MERGE = "a bottleneck adapter is not linear and cannot be merged into the base; keep it beside the base"


@dataclass
class BottleneckConfig(PeftConfig):
    """What the two types share; make a HoulsbyConfig or a PfeifferConfig.

    target_modules      behind which linear layers; None: the output projections, found by their names
    reduction_factor    the base's width divided by the bottleneck's
    bottleneck          the bottleneck's width, instead of reduction_factor
    activation          gelu, relu, silu or tanh
    bottleneck_dropout  of what enters `down`, in training
    """

    target_modules: list[str] | set[str] | str | None = None
    reduction_factor: float = 16
    bottleneck: int | None = None
    activation: str = "gelu"
    bottleneck_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if self.target_modules == "all-linear":
            raise ValueError(
                "bottleneck adapters sit behind output projections, not all-linear; leave target_modules out"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'activation "{self.activation}" is not known; one of {", ".join(ACTIVATIONS)}')
        if self.reduction_factor <= 0 or (self.bottleneck is not None and self.bottleneck < 1):
            raise ValueError("reduction_factor must be above 0 and bottleneck at least 1")
        if not 0 <= self.bottleneck_dropout < 1:
            raise ValueError(f"bottleneck_dropout {self.bottleneck_dropout} is not in [0, 1)")

    def width(self, size: int) -> int:
        """Width of the bottleneck behind a layer of this many outputs."""
        return self.bottleneck or max(1, int(size // self.reduction_factor))


@dataclass
class HoulsbyConfig(BottleneckConfig):
    """Adapters after attention and after the feed-forward part; GELU, as in the authors' code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.HOULSBY


@dataclass
class PfeifferConfig(BottleneckConfig):
    """Adapters after the feed-forward part only; ReLU."""

    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.PFEIFFER


def output_projections(model: nn.Module, kind: str) -> set[str]:
    """Ends of the paths of the modules behind which the adapters of a kind belong: one of each part in every layer.

    Raises ValueError if some layer has none or several, or if the model has experts.
    """
    paths = [path for path, _ in model.named_modules()]
    name = type(model).__name__
    if any("experts" in path.split(".") for path in paths):
        raise ValueError(f"{name} is a mixture of experts, whose feed-forward part has no one output projection")
    ends = set()
    for part in PLACES[kind]:
        found = [place for place in (_place(path, part) for path in paths) if place]
        layers = [layer for layer, _ in found]
        stacks = {layer.rpartition(".")[0] for layer in layers}
        wanted = [f"{stack}.{child}" for stack in stacks for child, _ in model.get_submodule(stack).named_children()]
        if len(stacks) != 1 or sorted(layers) != sorted(wanted):
            raise ValueError(
                f"{name} has not one {part} output projection in every layer (looked for {', '.join(NAMES[part])}); "
                "target_modules may name the layers behind which the adapters belong"
            )
        ends |= {end for _, end in found}
    return ends


def _place(path: str, part: str) -> tuple[str, str] | None:
    """(path of the numbered layer, end of the path) of an output projection; None for any other module."""
    *above, name = path.split(".")
    numbers = [index for index, step in enumerate(above) if step.isdigit()]
    if name not in NAMES[part] or not numbers:
        return None
    layer = ".".join(above[: numbers[-1] + 1])
    if numbers[-1] == len(above) - 1:  # straight in the layer, as OPT's fc2
        return layer, name
    return (layer, f"{above[-1]}.{name}") if above[-1] in OWNERS[part] else None


@final
class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer with adapters behind it; the active ones act one after another, in their order.

    rows  the adapter of every row of a mixed batch; None: the active ones for all
    """

    other_param_names = ("bottleneck_dropout", "activation")

    # BaseTunerLayer's, for the type checker
    active_adapters: list[str]
    disable_adapters: bool
    set_adapter: Callable[..., None]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Module, kind: str, size: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.kind, self.size = kind, size
        self.adapter_layer_names = (f"{kind}_down", f"{kind}_up")
        for name in self.adapter_layer_names:
            self.add_module(name, nn.ModuleDict())
        self.bottleneck_dropout = nn.ModuleDict()
        self.activation: dict[str, str] = {}
        self.rows: list[str] | None = None
        self._active_adapter: list[str] = []

    def update_layer(self, name: str, config: BottleneckConfig) -> None:
        """Add a fresh adapter."""
        width = config.width(self.size)
        down, up = nn.Linear(self.size, width), nn.Linear(width, self.size)
        nn.init.normal_(down.weight, std=self.size**-0.5)
        for parameter in (down.bias, up.weight, up.bias):
            nn.init.zeros_(parameter)
        for key, module in zip(self.adapter_layer_names, (down, up), strict=True):
            getattr(self, key)[name] = module
        self.bottleneck_dropout[name] = nn.Dropout(config.bottleneck_dropout)
        self.activation[name] = config.activation
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output [B, T, D] in its own dtype, adapted."""
        hidden_BTD: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return hidden_BTD
        if self.rows is None:
            for name in self.active_adapters:
                hidden_BTD = self._adapted(hidden_BTD, name)
            return hidden_BTD
        if hidden_BTD.dim() < 3 or len(hidden_BTD) != len(self.rows):
            raise ValueError(f"{len(self.rows)} adapter_names do not fit a batch of shape {tuple(hidden_BTD.shape)}")
        mixed_BTD = hidden_BTD.clone()
        for name in set(self.rows) - {BASE}:
            index = [row for row, own in enumerate(self.rows) if own == name]
            mixed_BTD[index] = self._adapted(hidden_BTD[index], name)
        return mixed_BTD

    def _adapted(self, hidden: Tensor, name: str) -> Tensor:
        if name not in self.activation:  # that adapter has other target_modules
            return hidden
        layers: list[Any] = [getattr(self, key)[name] for key in self.adapter_layer_names]
        down, up = layers
        inner: Tensor = self.bottleneck_dropout[name](hidden.to(down.weight.dtype))
        added: Tensor = up(ACTIVATIONS[self.activation[name]](down(inner)))
        return hidden + added.to(hidden.dtype)

    def merge(self, *_: Any, **__: Any) -> None:
        """Raises ValueError: impossible."""
        raise ValueError(NO_MERGE)


@final
class BottleneckModel(BaseTuner):
    """The tuner of both types; `prefix` is that of its first adapter's type, and PEFT keeps types apart."""

    tuner_layer_cls = BottleneckLayer

    def _pre_injection_hook(self, model: nn.Module, config: BottleneckConfig, adapter_name: str) -> None:
        self.prefix = f"{_kind(config)}_"

    def _prepare_adapter_config(self, config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        if config.target_modules is None:
            config.target_modules = output_projections(self.model, _kind(config))
        return config

    def _create_and_replace(
        self,
        config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        kind = _kind(config)
        if isinstance(target, BottleneckLayer):
            if target.kind != kind:
                raise ValueError(f"{current_key} has {target.kind} adapters; {kind} ones cannot be added to them")
            target.update_layer(adapter_name, config)
            return
        if "experts" in current_key.split("."):
            raise ValueError(
                f"{current_key} is one of several experts; an adapter behind each of them is not supported"
            )
        layer = BottleneckLayer(target, kind, _outputs(target, current_key))
        layer.update_layer(adapter_name, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise ValueError(NO_MERGE)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT enters this around a call, and drops `adapter_names` silently where a tuner does not have it."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        unknown = sorted(set(names) - {BASE, *self.peft_config})
        if unknown:
            raise ValueError(f"adapter_names {unknown} are not known; there are {sorted(self.peft_config)} and {BASE}")
        if self.training:
            raise ValueError("adapter_names are for inference; call eval() first")
        # generate() repeats every row for its beams, or for the sequences to return
        copies = max(kwargs.get("num_beams") or 1, kwargs.get("num_return_sequences") or 1)
        layers = [module for module in self.modules() if isinstance(module, BottleneckLayer)]
        for layer in layers:
            layer.rows = [name for name in names for _ in range(copies)]
        try:
            yield
        finally:
            for layer in layers:
                layer.rows = None


def _kind(config: BottleneckConfig) -> str:
    return str(config.peft_type.value).lower()


def _outputs(target: nn.Module, path: str) -> int:
    """How many outputs a linear layer has, quantised or not."""
    if isinstance(target, Conv1D):
        return int(target.nf)
    if isinstance(target, nn.Linear):  # and bitsandbytes' layers, which derive from it
        return target.out_features
    raise ValueError(f"{path} is a {type(target).__name__}; bottleneck adapters sit behind linear layers")


def _register(name: str, config: type[BottleneckConfig]) -> None:
    """Make a type known to PEFT, whose enum of types is closed."""
    value = name.upper()
    if value not in PeftType.__members__:
        member = str.__new__(PeftType, value)
        member._name_, member._value_, member._sort_order_ = value, value, len(PeftType)
        setattr(PeftType, value, member)  # before the maps: a member of those cannot be set any more
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = PeftType._value2member_map_[value] = member
    register_peft_method(name=name, config_cls=config, model_cls=BottleneckModel)


_register("houlsby", HoulsbyConfig)
_register("pfeiffer", PfeifferConfig)
