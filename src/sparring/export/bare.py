"""The same model asked without this project: transformers, and PEFT for adapters, one answer at a time.

An export counts as verified when a program that knows nothing of Sparring gets the run's log-probs out of it.

Shapes: N tokens of all answers, A of one, L of a whole sequence, V the vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring.config import ModelConfig
from sparring.data.messages import Message, Renderer
from sparring.data.pairs import Prompt
from sparring.files import read_json
from sparring.models.adapters import CONFIG, quiet
from sparring.models.base import choose_device, read_config
from sparring.models.quantised import loading, stored_as

GENERATION = "generation_config.json"
# Chats that the tokenizer of an export must render as the run does.
CHATS: tuple[tuple[Message, ...], ...] = (
    (Message("user", "What is a prime number?"),),
    (Message("user", "1 + 1?"), Message("assistant", "2."), Message("user", "And  twice that,\n\nin words? 🙂")),
)


def bare_model(folder: Path, config: ModelConfig, adapter: Path | None = None, quantised: str = "") -> Any:
    """A model, and an adapter on it, as transformers' and PEFT's own documents load them, and by nothing of ours.

    folder     a model in Hugging Face layout
    config     where and in which dtype it computes, and how it is quantised
    quantised  how its weights come to lie in memory (models/quantised.py); empty: as they are on disk
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    device, dtype = choose_device(config)
    placed: dict[str, Any] = {}
    if quantised:
        placed = loading(config, device, dtype) if config.quantise != "none" else {"device_map": {"": device}}
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, trust_remote_code=config.trust_remote_code, use_safetensors=True, **placed
    )
    model = model if quantised else model.to(device)
    if adapter is not None:
        if read_json(adapter / CONFIG)["peft_type"] in ("HOULSBY", "PFEIFFER"):
            import sparring.models.bottleneck  # noqa: F401  PEFT does not know these types by itself
        with quiet():
            model = PeftModel.from_pretrained(model, str(adapter), torch_device=str(device))
    return model.eval()


@torch.no_grad()
def token_logprobs(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """log p of every answer token, row by row, each by one forward pass of the whole sequence; fp64 [N] on the CPU."""
    found = []
    for prompt, answer in rows:
        ids = torch.tensor([prompt + answer], device=model.device)
        logits_LV = model(input_ids=ids, use_cache=False).logits[0]
        first = len(logits_LV) - len(answer) - 1  # virtual tokens may stand before the prompt
        logits_AV = logits_LV[first:-1].float()
        target_A = torch.tensor(answer, device=logits_AV.device)
        found.append(logits_AV.log_softmax(-1).gather(-1, target_A.unsqueeze(-1)).squeeze(-1).double().cpu())
    return torch.cat(found)


def bare_logprobs(
    folder: Path, prompts: Sequence[Prompt], config: ModelConfig, adapter: Path | None = None
) -> list[float]:
    """log p [N] of every token of the real answers in nats, by transformers and PEFT alone; weights as on disk."""
    stored = stored_as(read_config(folder, config))
    model = bare_model(folder, config, adapter, stored)
    found: list[float] = token_logprobs(model, [(prompt.prompt_ids, prompt.real_ids) for prompt in prompts]).tolist()
    del model
    gc.collect()
    return found


def other_tokens(folder: Path, renderer: Renderer, config: ModelConfig, chat: bool, system: str | None) -> list[str]:
    """Where a folder's own tokenizer and template are not the run's, in words; empty: nowhere."""
    from transformers import AutoTokenizer, GenerationConfig

    theirs: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    wrong, mine = [], renderer.tokenizer
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        if getattr(theirs, name) != getattr(mine, name):
            wrong.append(f"its {name} is {getattr(theirs, name)}, and the run's {getattr(mine, name)}")
    if (folder / GENERATION).exists():
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
        if {*([ends] if isinstance(ends, int) else ends or [])} != {*renderer.end_ids}:
            wrong.append(f"answers end at {ends}, and the run's at {list(renderer.end_ids)}")
    opening = (Message("system", system or "Be brief."),)
    for messages in CHATS:
        for turns in (messages, (*opening, *messages)):
            ours = renderer.prompt(turns, chat=chat)
            got = _ids(theirs, renderer, turns, chat)
            if got != ours:
                said = turns[-1].content[:20]
                wrong.append(f"{said!r} is {len(ours)} tokens {ours[:6]}…, there {len(got)} {got[:6]}…")
    return wrong


def _ids(theirs: Any, renderer: Renderer, turns: tuple[Message, ...], chat: bool) -> list[int]:
    """What another tokenizer makes of turns."""
    if chat:
        given = renderer.turns(turns)
        asked = theirs.apply_chat_template(given, add_generation_prompt=True, return_dict=True)
        return list(asked["input_ids"])
    ids = list(theirs(turns[-1].content).input_ids)
    return ids[:-1] if renderer.adds_eos else ids
