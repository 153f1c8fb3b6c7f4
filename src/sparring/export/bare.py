"""The same model asked without this project: transformers, and PEFT for adapters, one answer at a time.

An export counts as verified when a program that knows nothing of Sparring gets the run's log-probs out of it.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparring.config import ModelConfig
from sparring.data.messages import Message, Renderer
from sparring.data.pairs import Prompt
from sparring.models.adapters import CONFIG, quiet
from sparring.models.base import DTYPES, choose_device

# Chats that the tokenizer of an export must render as the run does.
CHATS: tuple[tuple[Message, ...], ...] = (
    (Message("user", "What is a prime number?"),),
    (Message("user", "1 + 1?"), Message("assistant", "2."), Message("user", "And  twice that,\n\nin words? 🙂")),
)


@torch.no_grad()
def bare_logprobs(
    folder: Path, prompts: Sequence[Prompt], config: ModelConfig, adapter: Path | None = None
) -> list[float]:
    """log p(real answer | prompt) [N] in nats, by transformers and PEFT alone.

    folder   a model in Hugging Face layout
    config   where and in which dtype it computes (device, dtype, trust_remote_code); weights are as they are on disk
    adapter  a PEFT adapter to put on it
    """
    from transformers import AutoModelForCausalLM

    device, dtype = choose_device(config)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, trust_remote_code=config.trust_remote_code, use_safetensors=True
    )
    if getattr(model, "quantization_method", None) is None:
        model = model.to(device)
    if adapter is not None:
        if any(kind in (adapter / CONFIG).read_text(encoding="utf-8") for kind in ('"HOULSBY"', '"PFEIFFER"')):
            import sparring.models.bottleneck  # noqa: F401  makes PEFT know the type
        from peft import PeftModel

        with quiet():
            model = PeftModel.from_pretrained(model, str(adapter), torch_device=str(device))
    model.eval()
    found = [_logprob(model, prompt, device) for prompt in prompts]
    del model
    gc.collect()
    return found


def _logprob(model: Any, prompt: Prompt, device: torch.device) -> float:
    ids = torch.tensor([[*prompt.prompt_ids, *prompt.real_ids]], device=device)
    count = len(prompt.real_ids)
    logits_AV = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -count - 1 : -1]
    answer_A = torch.tensor(prompt.real_ids, device=device)
    picked_A = torch.log_softmax(logits_AV.float(), dim=-1).gather(-1, answer_A[:, None])
    return float(picked_A.double().sum())


def other_tokens(folder: Path, renderer: Renderer, config: ModelConfig, chat: bool, system: str | None) -> list[str]:
    """Where a folder's own tokenizer and template give other tokens than the run's, in words; empty: nowhere."""
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    opening = (Message("system", system or "Be brief."),)
    wrong = []
    for messages in CHATS:
        for turns in (messages, (*opening, *messages)):
            ours = renderer.prompt(turns, chat=chat)
            if chat:
                given = renderer.turns(turns)
                got = theirs.apply_chat_template(given, add_generation_prompt=True, return_dict=True)["input_ids"]
            else:
                got = list(theirs(turns[-1].content).input_ids)
                got = got[:-1] if renderer.adds_eos else got
            if got != ours:
                wrong.append(
                    f"{turns[-1].content[:20]!r} is {len(ours)} tokens {ours[:6]}…, there {len(got)} {got[:6]}…"
                )
    return wrong


def dtype_of(config: ModelConfig) -> torch.dtype:
    """The dtype that an export is in."""
    return DTYPES[config.dtype]
