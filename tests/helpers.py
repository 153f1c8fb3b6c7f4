"""Fixtures that need no file and no network: tokenizers built in memory, tiny random models of eight architectures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RecurrentGemmaConfig,
)

from sparring.data.collate import Row
from sparring.data.messages import PLAIN, Renderer
from sparring.methods.lora import LoRA
from sparring.models.base import Base, quiet_dropout, wrap_base
from sparring.models.players import Player, Ring

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# ---------------------------------------------------------------- tokenizers

CORPUS = [
    "The cat sat on the mat. What is the capital of France? The capital of France is Paris.",
    "How many legs has a dog? A dog has four legs, and a bird has two.",
    "unable unable unable unable unhappy undo redo repeat the question, then answer it: yes or no.",
    "### User:\n### Assistant:\n<|user|>\n<|assistant|>\nuser\nassistant\nsystem\nmodel\n[INST] [/INST]\n\n",
    "def add(a, b):\n    return a + b\n\n1 2 3 10 20 30",
]


def byte_tokenizer(
    special: Sequence[str] = ("<|endoftext|>",),
    *,
    bos: str | None = None,
    eos: str = "<|endoftext|>",
    add_bos: bool = False,
    add_eos: bool = False,
    template: str | None = None,
    size: int = 420,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, GPT-NeoX, Llama-3 and Qwen have it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(CORPUS, trainer)
    return _wrapped(core, bos, eos, add_bos, add_eos, template, pad=None)


def piece_tokenizer(
    special: Sequence[str] = (),
    *,
    bos: str | None = "<s>",
    eos: str = "</s>",
    add_bos: bool = True,
    add_eos: bool = False,
    template: str | None = None,
    size: int = 400,
) -> PreTrainedTokenizerFast:
    """SentencePiece's way: every text opens with a space, unknown characters fall back to bytes (Llama 2, Mistral)."""
    names = ["<unk>", *([bos] if bos else []), eos, *special]
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size + 256,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in names] + bytes_,
        max_token_length=8,
    )
    words = [word for line in CORPUS for word in line.replace("\n", " ").split(" ")]
    core.train_from_iterator(words, trainer)
    model = json.loads(core.to_str())
    model["added_tokens"] = [token for token in model["added_tokens"] if token["content"] not in bytes_]
    return _wrapped(Tokenizer.from_str(json.dumps(model)), bos, eos, add_bos, add_eos, template, pad=None)


def _wrapped(
    core: Tokenizer, bos: str | None, eos: str, add_bos: bool, add_eos: bool, template: str | None, pad: str | None
) -> PreTrainedTokenizerFast:
    if add_bos or add_eos:
        single = " ".join([*([bos] if add_bos and bos else []), "$A", *([eos] if add_eos else [])])
        known = [(name, core.token_to_id(name)) for name in (bos, eos) if name]
        step = processors.TemplateProcessing(single=single, special_tokens=known)
        core.post_processor = step
    unk = "<unk>" if core.token_to_id("<unk>") is not None else None
    names = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in names.items() if token},
    )
    tokenizer.chat_template = template
    return tokenizer


def renderer_of(tokenizer: Any) -> Renderer:
    """As `load_renderer` makes it: the tokenizer's own template, else the plain one."""
    return Renderer(tokenizer, tokenizer.chat_template or PLAIN)


# ---------------------------------------------------------------- models

VOCABULARY = 512
CONTEXT = 128
_ROPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_GROUPED = {**_ROPE, "num_key_value_heads": 2}

# Windows are shorter than most prompts here, so that local attention is at work.
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **more: LlamaConfig(**_GROUPED, **more),
    "qwen2": lambda **more: Qwen2Config(**_GROUPED, **more),
    "qwen3": lambda **more: Qwen3Config(**_GROUPED, head_dim=8, **more),
    "mistral": lambda **more: MistralConfig(**_GROUPED, sliding_window=6, **more),
    "gemma3": lambda **more: Gemma3TextConfig(
        **_GROUPED,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
        **more,
    ),
    "gpt_neo": lambda **more: GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=CONTEXT,
        window_size=6,
        **more,
    ),
    "gpt_neox": lambda **more: GPTNeoXConfig(**_ROPE, **more),
    "gpt2": lambda **more: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **more),
}
ARCHITECTURES = tuple(CONFIGS)

# Not in every test: soft caps, factors on the logits, layers with and without a window, states instead of attention.
CONFIGS |= {
    "gemma2": lambda **more: Gemma2Config(
        **_GROUPED,
        head_dim=8,
        sliding_window=6,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        **more,
    ),
    "cohere": lambda **more: CohereConfig(**_GROUPED, logit_scale=0.25, **more),
    "granite": lambda **more: GraniteConfig(**_GROUPED, logits_scaling=4.0, attention_multiplier=0.2, **more),
    "mamba": lambda **more: MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **more),
    "recurrent_gemma": lambda **more: RecurrentGemmaConfig(
        **_GROUPED, block_types=["recurrent", "attention"], lru_width=32, attention_window_size=6, **more
    ),
    "gptj": lambda **more: GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=CONTEXT, **more),
}

# A dropout of 0.1 wherever the architecture has one, by the names of its config.
DROPOUTS: dict[str, dict[str, float]] = {
    "llama": {"attention_dropout": 0.1},
    "qwen2": {"attention_dropout": 0.1},
    "qwen3": {"attention_dropout": 0.1},
    "mistral": {"attention_dropout": 0.1},
    "gemma3": {"attention_dropout": 0.1},
    "gpt_neo": {"attention_dropout": 0.1, "embed_dropout": 0.1, "resid_dropout": 0.1},
    "gpt_neox": {"attention_dropout": 0.1, "hidden_dropout": 0.1},
    "gpt2": {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
}


def config_of(name: str, tokenizer: Any = None, **more: Any) -> Any:
    """A tiny config; with a tokenizer, its ids and size."""
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    size = VOCABULARY if tokenizer is None else len(tokenizer)
    return CONFIGS[name](vocab_size=size, pad_token_id=None, **ids, **more)


def model_of(config: Any, seed: int = 0, dtype: torch.dtype = torch.float32, sharp: float = 3.0) -> Any:
    """A random model. Its matrices are scaled up, for freshly made ones give nearly uniform distributions."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(sharp)
    return model.to(dtype).eval()


def base_of(
    name: str, *, tokenizer: Any = None, seed: int = 0, dtype: torch.dtype = torch.float32, **more: Any
) -> Base:
    """A tiny base in memory, as `load_base` would give it."""
    tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
    # Untrained models end an answer seldom; a vocabulary no larger than needed lets some of them end.
    config = quiet_dropout(config_of(name, tokenizer, **more))

    def read() -> Any:
        return model_of(config, seed, dtype)

    return wrap_base(read(), renderer_of(tokenizer), f"{name}-{seed}", reload=read)


def save_base(folder: Path, name: str, tokenizer: Any, seed: int = 0, **more: Any) -> Path:
    """A tiny model folder in Hugging Face layout."""
    model_of(config_of(name, tokenizer, **more), seed, sharp=2.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ring_of(base: Base, r: int = 4, alpha: float = 8.0) -> Ring:
    """A ring on a base with small adapters on every linear layer."""
    return Ring(base, LoRA(r=r, alpha=alpha), "base")


def disturb(ring: Ring, seed: int = 1, scale: float = 0.1) -> None:
    """Move every trainable weight, so that the adapter is far from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(ring.trainable().items()):
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def make_player(ring: Ring, opponent: Player, folder: Path, name: str, seed: int = 1) -> Player:
    """Challenge, disturb, save: a next player in `folder`/`name` without training."""
    ring.challenge(opponent, seed)
    disturb(ring, seed)
    (folder / name).mkdir(parents=True)
    return ring.save(folder / name, opponent, folder, name)


# ---------------------------------------------------------------- rows


def random_rows(vocabulary: int, seed: int = 0, count: int = 9, prompt: int = 25, answer: int = 20) -> list[Row]:
    """(prompt ids, answer ids) of many different lengths, one token at least."""
    generator = torch.Generator().manual_seed(seed)

    def ids(most: int) -> list[int]:
        size = int(torch.randint(1, most + 1, (1,), generator=generator))
        drawn: list[int] = torch.randint(3, vocabulary, (size,), generator=generator).tolist()
        return drawn

    return [(ids(prompt), ids(answer)) for _ in range(count)]


@torch.no_grad()
def plain_logprobs(model: Any, row: Row) -> torch.Tensor:
    """log p of each answer token by one unpadded forward pass and log_softmax, and by nothing of ours."""
    prompt, answer = row
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    return torch.stack([logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(answer)])
