"""Prompt tuning and prefix tuning as tokens past the vocabulary, which all other parts take for ordinary ones.

A player's n virtual tokens have the ids V … V+n-1 and stand before every prompt (`Base.prelude`).

    prompt  Lester et al. 2021 (arXiv 2104.08691): their embeddings are trained; they stand at positions 0 … n-1
    prefix  Li and Liang 2021 (arXiv 2101.00190): their keys and values are trained, in every layer; they all stand at
            position 0, where a rotary embedding is the identity, and the prompt at n, n+1 … as with PEFT's own prefix

In memory this is a tuner in PEFT's registry, on disk PEFT's PROMPT_TUNING and PREFIX_TUNING (`to_peft`, `from_peft`).
Shapes: B rows, T tokens, n virtual tokens, D an embedding, N layers, W a layer's keys in all heads.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from peft import PeftConfig, PrefixTuningConfig, PromptTuningConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.models.keys import Keys, Site, find_keys

NAME = "sparring_virtual"
SAVED = "prompt_embeddings"  # what PEFT calls the one tensor of either kind
COMMON = 5000  # tokens that a start is drawn from, as Lester et al. (section 3.2): vocabularies begin with the frequent


# The deviation of a start from noise. In the laboratory (8 tokens, 60 steps of SFT, 3 seeds, best of 5 rates each) the
# held-out NLL of an answer token, 0.167 for the base, ends at 0.153 for a prompt and 0.132 for a prefix; from random
# real tokens, which that base has never seen before its prompts, at 0.161 and 0.166.
SMALL = 0.02

Kind = Literal["prompt", "prefix"]


@dataclass
class VirtualConfig(PeftConfig):
    """n virtual tokens. What is of the base is filled in when they are put on it.

    kind      what of them is trained: prompt or prefix
    start     noise: normal, and small; tokens: what the base makes of real ones, their embeddings or keys and values,
              as Lester et al. (section 3.2) and Li and Liang (section 7.4) advise for large models
    init_ids  start from these tokens, repeated or cut to n; None: from frequent ones, drawn with torch's seed
    """

    kind: Kind = "prompt"
    num_virtual_tokens: int = 20
    start: Literal["noise", "tokens"] = "noise"
    init_ids: list[int] | None = None
    token_dim: int | None = None
    num_layers: int | None = None
    num_attention_heads: int | None = None
    target_modules: None = None

    def __post_init__(self) -> None:
        """PEFT's own part of a config."""
        super().__post_init__()
        self.peft_type = PeftType(NAME.upper())


# ---------------------------------------------------------------- what a model computes


@dataclass(slots=True)
class Seen:
    """Which tokens of the latest call are virtual, for the layers; None: none have a prefix.

    Layers that are computed again in the backward pass look here again, so a call with a graph must be followed by
    its backward pass before the next call, as it is in training; torch raises if the next one had another shape.
    """

    virtual_BT: Tensor | None = None
    which_BT: Tensor | None = None
    rows_nW: tuple[Tensor, ...] = ()


@final
class VirtualEmbedding(nn.Module, BaseTunerLayer):
    """The base's embedding, and the trained matrix of each adapter: [n, D] of a prompt, [n, 2·N·W] of a prefix."""

    adapter_layer_names = (f"{NAME}_rows",)
    other_param_names = ("kinds",)

    def __init__(self, base_layer: Any, seen: Seen) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.seen = seen
        self.vocabulary = int(base_layer.weight.shape[0])
        self.sparring_virtual_rows = nn.ParameterDict()
        self.kinds: dict[str, tuple[Kind, int]] = {}  # and how many layers

    @property
    def adapter(self) -> str | None:
        """The name of the one that is active."""
        active: Any = [] if self.disable_adapters else self.active_adapters
        return next((name for name in active if name in self.kinds), None)

    @property
    def kind(self) -> Kind | None:
        """What the active adapter trains."""
        return None if self.adapter is None else self.kinds[self.adapter][0]

    @property
    def count(self) -> int:
        """Virtual tokens of the active adapter."""
        return 0 if self.adapter is None else len(self.sparring_virtual_rows[self.adapter])

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Embeddings [B, T, D] in the base's type; of ids below V the base's own, bit for bit."""
        seen, name = self.seen, self.adapter
        seen.virtual_BT, seen.which_BT, seen.rows_nW = None, None, ()
        virtual_BT = ids_BT >= self.vocabulary
        if name is None or not virtual_BT.any():
            embedded: Tensor = self.base_layer(ids_BT)
            return embedded
        embedded_BTD: Tensor = self.base_layer(ids_BT.masked_fill(virtual_BT, 0))
        which_BT = (ids_BT - self.vocabulary).clamp(min=0)
        rows, (kind, layers) = self.sparring_virtual_rows[name], self.kinds[name]
        if kind == "prefix":  # layers put theirs in place of what they make of this token
            seen.virtual_BT, seen.which_BT = virtual_BT, which_BT
            seen.rows_nW = rows.unflatten(1, (2 * layers, -1)).unbind(1)
            return embedded_BTD.masked_fill(virtual_BT.unsqueeze(-1), 0)
        trained_BTD = F.embedding(which_BT, rows).to(embedded_BTD.dtype)
        return torch.where(virtual_BT.unsqueeze(-1), trained_BTD, embedded_BTD)


@final
class VirtualKeys(nn.Module, BaseTunerLayer):
    """A module that makes keys or values or both; at virtual places the trained ones stand instead."""

    def __init__(self, base_layer: Any, site: Site, seen: Seen) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.site = site
        self.seen = seen

    def forward(self, *given: Any, **more: Any) -> Tensor:
        """The module's output, in its shape and type."""
        made: Tensor = self.base_layer(*given, **more)
        seen, axis = self.seen, self.site.axis
        if seen.virtual_BT is None or seen.which_BT is None:
            return made
        # looked up in fp32, for so the gradient of a row that many prompts share is added up in fp32
        parts = [F.embedding(seen.which_BT, seen.rows_nW[slot]) for slot in self.site.slots]
        trained = torch.cat(parts, dim=-1).to(made.dtype)
        if len(parts) > 1:  # queries come before
            kept, made = made[..., : -trained.shape[-1]], made[..., -trained.shape[-1] :]
            return torch.cat([kept, torch.where(seen.virtual_BT.unsqueeze(-1), trained, made)], dim=-1)
        tokens_first = made.movedim(axis, 1).shape
        virtual = seen.virtual_BT.view(*tokens_first[:2], *(1 for _ in tokens_first[2:])).movedim(1, axis)
        return torch.where(virtual, trained.view(tokens_first).movedim(1, axis), made)


# ---------------------------------------------------------------- the tuner


@final
class VirtualModel(BaseTuner):
    """A model with virtual tokens, as PEFT's tuners are: adapters by name, one of them active, the rest untouched."""

    prefix = f"{NAME}_"
    tuner_layer_cls = BaseTunerLayer

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one; ValueError for several, which would stand one before the other."""
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise ValueError(
                f"virtual tokens of several adapters cannot be active at once ({', '.join(adapter_name)}); "
                "activate one of them"
            )
        super().set_adapter(adapter_name, inference_mode)

    def _prepare_adapter_config(self, peft_config: VirtualConfig, model_config: dict[str, Any]) -> VirtualConfig:
        return peft_config  # which modules are wrapped is found out, not asked for

    def _prepare_model(self, config: VirtualConfig, model: Any) -> None:
        """Find the modules that will be wrapped, and what the new adapter starts from."""
        embedding = model.get_input_embeddings()
        self._seen = embedding.seen if isinstance(embedding, VirtualEmbedding) else Seen()
        self._embedding = next(name for name, module in model.named_modules() if module is embedding)
        ids, self._keys = _start_ids(config, int(embedding.weight.shape[0])), None
        known = model.config.get_text_config()
        sizes = (embedding.weight.shape[1], known.num_hidden_layers, getattr(known, "num_attention_heads", 1))
        if config.kind == "prefix":
            self._keys = find_keys(model, ids)
            self._start = self._keys.made_T2NW.flatten(1)
            sizes = (self._keys.made_T2NW.shape[2], self._keys.made_T2NW.shape[1] // 2, self._keys.heads)
        else:
            with torch.no_grad():
                self._start = embedding(torch.tensor(ids, device=embedding.weight.device)).float()
        if config.start == "noise" and not (config.init_ids or config.inference_mode):
            self._start = SMALL * torch.randn(self._start.shape).to(self._start.device)
        for name, size in zip(("token_dim", "num_layers", "num_attention_heads"), sizes, strict=True):
            if getattr(config, name) not in (None, int(size)):
                raise ValueError(
                    f"these virtual tokens were trained on another base: {name} is {getattr(config, name)}, but this "
                    f"base has {size}; give the base they belong to"
                )
            setattr(config, name, int(size))

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> bool:
        return key == self._embedding or (self._keys is not None and key in self._keys.sites)

    def _create_and_replace(
        self, peft_config: VirtualConfig, adapter_name: str, target: Any, target_name: str, parent: Any,
        current_key: str, parameter_name: str | None = None,
    ) -> None:  # fmt: skip
        wrapped = target
        if not isinstance(target, VirtualEmbedding | VirtualKeys):
            keys: Keys | None = self._keys
            site = None if keys is None else keys.sites.get(current_key)
            wrapped = VirtualEmbedding(target, self._seen) if site is None else VirtualKeys(target, site, self._seen)
            self._replace_module(parent, target_name, wrapped, target)
        if isinstance(wrapped, VirtualEmbedding):
            wrapped.kinds[adapter_name] = (peft_config.kind, peft_config.num_layers or 0)
            wrapped.sparring_virtual_rows[adapter_name] = nn.Parameter(self._start.clone())

    def _check_merge_allowed(self) -> None:
        raise ValueError("virtual tokens cannot be merged into the base's weights; they stay beside it")

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return SAVED  # there is one tensor, and this is its name in a folder of PEFT's own


def _start_ids(config: VirtualConfig, vocabulary: int) -> list[int]:
    """The n tokens that an adapter starts from. One that will be loaded draws none."""
    count = config.num_virtual_tokens
    if config.init_ids:
        return [config.init_ids[i % len(config.init_ids)] for i in range(count)]
    if config.inference_mode:
        return [i % vocabulary for i in range(count)]
    drawn: list[int] = torch.randint(min(COMMON, vocabulary), (count,)).tolist()
    return drawn


def _register() -> None:
    """PEFT's types are a closed enum: a member first, then the tuner. A second import finds both."""
    name = NAME.upper()
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_, member._value_ = name, name
        PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
        PeftType._member_names_.append(name)
        type.__setattr__(PeftType, name, member)
    if PeftType(name) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=NAME, config_cls=VirtualConfig, model_cls=VirtualModel)


_register()

# ---------------------------------------------------------------- what others ask


def virtual_tokens(model: Any) -> int:
    """How many virtual tokens the adapter that is active on a transformers model has; 0 if it has none."""
    embedding = model.get_input_embeddings()
    return embedding.count if isinstance(embedding, VirtualEmbedding) else 0


def no_gradients(model: Any) -> tuple[bool, bool]:
    """Whether in the first layer (what the embedding gives, its queries) need no gradient, given a frozen embedding.

    A prompt's embeddings are trained; a prefix trains the layer's keys, and queries that are made in one matrix with
    keys are computed along with them. The second is of interest only where no linear layer is trained.
    """
    embedding = model.get_input_embeddings()
    kind = embedding.kind if isinstance(embedding, VirtualEmbedding) else None
    apart = any(isinstance(module, VirtualKeys) and len(module.site.slots) == 1 for module in model.modules())
    return kind != "prompt", kind == "prefix" and apart


def placed(model: Any, ids_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor | None:
    """Position ids for a call with these ids, virtual tokens of a prefix all at 0; without one, those given.

    positions_BT  ordinary positions; None: 0, 1, 2 … in every row
    """
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, VirtualEmbedding) or embedding.kind != "prefix":
        return positions_BT
    if positions_BT is None:
        positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    return positions_BT.masked_fill(ids_BT >= embedding.vocabulary, 0)


# ---------------------------------------------------------------- on disk

SHARED = ("task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping")
SIZES = ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads")


def to_peft(config: VirtualConfig, tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(adapter_config.json, tensors) that PEFT loads by itself. How the tokens began is not in it."""
    common = {name: getattr(config, name) for name in (*SHARED, *SIZES)} | {"num_transformer_submodules": 1}
    if config.kind == "prompt":
        settings = PromptTuningConfig(**common).to_dict()
    else:
        settings = PrefixTuningConfig(**common, encoder_hidden_size=config.token_dim).to_dict()
    plain = {name: value.value if isinstance(value, enum.Enum) else value for name, value in settings.items()}
    return plain, {SAVED: tensors[SAVED]}


def from_peft(settings: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[VirtualConfig, dict[str, Tensor]]:
    """The inverse of `to_peft`, bit for bit; also of a folder that PEFT wrote. ValueError if it is neither kind."""
    kinds: dict[Any, Kind] = {"PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}
    if settings.get("peft_type") not in kinds or SAVED not in tensors:
        raise ValueError(f"{settings.get('peft_type')} holds no virtual tokens; PROMPT_TUNING and PREFIX_TUNING do")
    known: dict[str, Any] = {name: settings.get(name) for name in (*SHARED, *SIZES)}
    return VirtualConfig(**known, kind=kinds[settings["peft_type"]]), {SAVED: tensors[SAVED]}
