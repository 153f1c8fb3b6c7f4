"""The frozen base and its tokenizer: found, checked, loaded, fingerprinted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from sparring import laboratory
from sparring.config import ModelConfig
from sparring.crew import local_rank
from sparring.data.messages import Renderer, choose_template
from sparring.errors import ModelError
from sparring.machine import fast_bf16
from sparring.models.forward import Layout
from sparring.models.layout import choose_layout
from sparring.models.quantised import loading, quantisation, quantised_fingerprint, steady
from sparring.models.virtual import virtual_tokens

# Dropout rates, by the names that transformers' configs give them. All are set to 0: the self-play
# loss needs the player to give the opponent's very log-probs at the first step (law 1).
DROPOUTS = (
    "attention_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "hidden_dropout",
    "embed_dropout",
    "resid_dropout",
    "summary_first_dropout",
    "classifier_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Base:
    """One frozen model in memory.

    context  the most tokens that prompt and answer may have together, and a player's virtual tokens before them
    layout   how it is called when answers are scored or trained on
    quantised  how its weights lie in memory: "" in `dtype`, "nf4", "int8", or as it came (models/quantised.py)
    reload   reads the same weights once more; None: they were not read from a folder
    """

    model: Any
    renderer: Renderer
    fingerprint: str
    context: int
    vocabulary: int
    device: torch.device
    dtype: torch.dtype
    layout: Layout
    quantised: str = ""
    reload: Callable[[], Any] | None = None

    @property
    def pad_id(self) -> int:
        """The token written behind short rows, where causal attention never looks."""
        tokenizer = self.renderer.tokenizer
        pad = tokenizer.pad_token_id
        return int(tokenizer.eos_token_id if pad is None else pad)

    @property
    def virtual(self) -> int:
        """How many virtual tokens the player that is seated has (models/virtual.py); 0 for most methods."""
        return virtual_tokens(self.model)

    @property
    def prelude(self) -> list[int]:
        """The ids that stand before every prompt of the player that is seated: of its virtual tokens."""
        return list(range(self.vocabulary, self.vocabulary + self.virtual))

    def at(self, temperature: float) -> Base:
        """The same base, whose players are scored with their final logits divided by a temperature above 0."""
        return replace(self, layout=replace(self.layout, temperature=temperature))


def choose_device(config: ModelConfig) -> tuple[torch.device, torch.dtype]:
    """Where to compute and in which type: bf16 on CUDA and on CPUs that are fast at it, else fp32.

    On GPUs without bf16 (before Ampere: T4, V100, 2080) fp16: they compute bf16 by detours, several times slower.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device is cuda, but no CUDA device is available; use auto or cpu")
    cuda = torch.cuda.is_available() and config.device != "cpu"
    if cuda and local_rank() >= torch.cuda.device_count():
        raise ModelError(
            f"process {local_rank()} of this machine has no GPU: it has {torch.cuda.device_count()}; start no more "
            "processes than that, or set model.device=cpu"
        )
    device = torch.device("cuda", local_rank()) if cuda else torch.device("cpu")
    if config.dtype != "auto":
        return device, DTYPES[config.dtype]
    if cuda:
        return device, torch.bfloat16 if _has_bf16(device) else torch.float16
    return device, torch.bfloat16 if fast_bf16() else torch.float32


def _has_bf16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def dtype_warning(config: ModelConfig) -> str:
    """What is to be said of the dtype that was asked for; empty if nothing is."""
    device, dtype = choose_device(config)
    if device.type == "cuda" and dtype == torch.bfloat16 and not _has_bf16(device):
        return (
            f"{torch.cuda.get_device_name(device)} has no bf16 and computes it by detours; model.dtype=fp16 is faster"
        )
    return ""


def find_base(config: ModelConfig) -> Path:
    """The local folder of the base: itself, the laboratory's, or a hub id's snapshot (downloaded if need be)."""
    if config.base == "laboratory":
        return laboratory.base_folder()
    folder = Path(config.base).expanduser()
    if folder.is_dir():
        return _checked(folder)
    if folder.exists():
        raise ModelError(f"model.base {folder} is a file; give the folder that holds config.json and *.safetensors")
    if config.base.startswith((".", "/", "~")) or config.base.count("/") > 1:
        raise ModelError(f"model.base {config.base} does not exist; give a local folder or a hub id such as owner/name")
    return _download(config)


def _checked(folder: Path) -> Path:
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ModelError(f"model.base {folder} holds an adapter, not a base model; give its base")
    if not (folder / "config.json").exists():
        raise ModelError(f"model.base {folder} has no config.json; give a model in Hugging Face layout")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model.base {folder} has no *.safetensors; pickled weights are not loaded, convert them to safetensors"
        )
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"model.base {folder} has no tokenizer (tokenizer.json); copy the model's tokenizer beside it")
    return folder


def _download(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    patterns += ["*.py"] if config.trust_remote_code else []
    try:
        found = snapshot_download(config.base, revision=config.revision, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f'model.base "{config.base}" is not a local folder, and the hub did not give it ({reason}); '
            "give a local folder, or check the name and the connection"
        ) from error
    return _checked(Path(found))


def read_config(folder: Path, config: ModelConfig) -> Any:
    """The base's transformers config with every dropout rate at 0."""
    from transformers import AutoConfig

    try:
        return quiet_dropout(AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code))
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"model.base {folder}: its config.json cannot be read ({reason})") from error


def quiet_dropout(settings: Any) -> Any:
    """Set every dropout rate of a transformers config to 0 and return it."""
    for name in DROPOUTS:
        if name in settings.to_dict():
            setattr(settings, name, 0.0)
    return settings


def load_renderer(folder: Path, config: ModelConfig) -> Renderer:
    """The tokenizer of a base with its chat template; loads no weights."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"model.base {folder}: its tokenizer cannot be read ({' '.join(str(error).split())[:200]})"
        ) from error
    template, _ = choose_template(config.template, tokenizer)
    return Renderer(tokenizer, template)


def context_of(settings: Any) -> int:
    """The context length in tokens that a transformers config states; 2048 if it states none."""
    text = settings.get_text_config()
    known = text.to_dict()
    rope = known.get("rope_parameters") or {}
    if rope.get("rope_type") in ("longrope", "dynamic") and rope.get("original_max_position_embeddings"):
        return int(rope["original_max_position_embeddings"])  # beyond it one long text changes all in its batch
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(known.get(name), int):
            return int(known[name])
    return 2048


def load_base(folder: Path, config: ModelConfig, renderer: Renderer) -> Base:
    """Load the weights, frozen, in eval mode, quantised if asked. Raises ModelError when transformers cannot."""
    from transformers import AutoModelForCausalLM

    device, dtype = choose_device(config)
    settings = read_config(folder, config)
    quantised = quantisation(settings, config)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # libraries put on the current device what they make

    def read() -> Any:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                config=settings,
                dtype=dtype,
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
                **_placed(config, device, dtype, quantised),
            )
        except (ValueError, OSError, RuntimeError, SafetensorError, ImportError) as error:
            reason = " ".join(str(error).split())[:300]
            kind = f", quantised as {quantised}," if quantised else ""
            raise ModelError(
                f"model.base {folder}{kind} cannot be loaded as a causal language model ({reason})"
            ) from error
        if not quantised:
            return model.to(device)
        steady(model, dtype)
        return model

    return wrap_base(read(), renderer, fingerprint_base(folder, config), quantised, read)


def _placed(config: ModelConfig, device: torch.device, dtype: torch.dtype, quantised: str) -> dict[str, Any]:
    """Where from_pretrained puts quantised weights, which cannot be moved later, and how it makes them."""
    if config.quantise != "none":
        return loading(config, device, dtype)
    return {"device_map": {"": device}} if quantised else {}


def wrap_base(
    model: Any, renderer: Renderer, fingerprint: str, quantised: str = "", reload: Callable[[], Any] | None = None
) -> Base:
    """Freeze a model that is already in memory. reload: gives one with the same weights again."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    if len(renderer.tokenizer) > vocabulary:
        raise ModelError(
            f"the tokenizer has {len(renderer.tokenizer)} tokens but the model only {vocabulary} embeddings; "
            "give the tokenizer that belongs to this model"
        )
    model.requires_grad_(False)
    model.eval()
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_contiguous)
    layout, context = choose_layout(model, vocabulary), context_of(model.config)
    weight = model.get_input_embeddings().weight
    return Base(
        model, renderer, fingerprint, context, vocabulary, weight.device, weight.dtype, layout, quantised, reload
    )


def _contiguous(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Before the head: a slice of hidden states times frozen bf16 weights copies the weights once per row on a CPU."""
    return (given[0].contiguous(), *given[1:])


def fingerprint_base(folder: Path, config: ModelConfig) -> str:
    """The fingerprint of the weights that `load_base` gives: the folder's, or another one if they are quantised."""
    content = fingerprint_folder(folder)
    if config.quantise == "none":
        return content
    return quantised_fingerprint(content, folder, config, choose_device(config)[1])


def fingerprint_folder(folder: Path) -> str:
    """sha256 over config.json, the tokenizer and every *.safetensors: the model's content, not its path."""
    total = hashlib.sha256()
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    names += ["tokenizer.model", "vocab.json", "merges.txt"]
    files = [folder / name for name in names if (folder / name).exists()]
    files += sorted([*folder.glob("*.safetensors"), *folder.glob("*.py")])
    for file in files:
        total.update(file.name.encode())
        if file.name == "config.json":
            content = {k: v for k, v in json.loads(file.read_text()).items() if k != "_name_or_path"}
            total.update(json.dumps(content, sort_keys=True).encode())
        else:
            with open(file, "rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()[:16]
