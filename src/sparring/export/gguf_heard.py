"""What llama.cpp says when a file is loaded in it: how likely answers are, how it goes on, which tokens texts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparring.data.messages import Message, Renderer
from sparring.export.gguf_texts import compare_chats, compare_texts
from sparring.export.gguf_tokenizer import adds_bos, special_ids

Row = tuple[list[int], list[int]]  # prompt ids, answer ids
Chat = tuple[Message, ...]

GREEDY = 32  # tokens that are continued


@dataclass(frozen=True, slots=True)
class Heard:
    """What llama.cpp said: log p of each answer's tokens, how it went on, and where its tokens were others.

    texts, chats, apart  as in Checked
    """

    logprobs: list[np.ndarray[Any, Any]]
    greedy: list[list[int]]
    differ: list[str]
    texts: int
    chats: int
    apart: int


def listen(
    file: Path,
    lora: Path | None,
    renderer: Renderer,
    rows: Sequence[Row],
    chats: Sequence[Chat],
    context: int,
    goes_on: bool,
) -> Heard:
    """Load a GGUF file, and an adapter with it if there is one, and ask.

    context  that the file should state, in tokens
    goes_on  whether the prompts are continued too, greedily
    Raises ValueError where llama.cpp cannot load it.
    """
    import llama_cpp

    llama_cpp.llama_log_set(_silence(), None)
    engine = llama_cpp.Llama(
        str(file),
        lora_path=str(lora) if lora else None,
        n_ctx=max(len(prompt) + max(len(answer), GREEDY) for prompt, answer in rows) + 1,
        n_threads=torch.get_num_threads(),
        n_threads_batch=torch.get_num_threads(),
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        logits_all=True,
        verbose=False,
    )
    try:
        logprobs = [_answer_logprobs(engine, prompt, answer) for prompt, answer in rows]
        greedy = [_continued(engine, prompt, renderer.end_ids) for prompt, _ in rows] if goes_on else []
        differ, texts, apart = compare_texts(engine, renderer, [prompt for prompt, _ in rows])
        more, rendered = compare_chats(engine, renderer, chats)
        said = _other_numbers(engine.metadata, renderer, context)
        return Heard(logprobs, greedy, said + differ + more, texts, rendered, apart)
    finally:
        engine.close()


def _other_numbers(metadata: dict[str, str], renderer: Renderer, context: int) -> list[str]:
    """Special tokens and the context, where the file says others than the model has."""
    named = {"unk": "unknown", "pad": "padding"}
    numbers = special_ids(renderer)
    wanted = {f"tokenizer.ggml.{named.get(name, name)}_token_id": str(number) for name, number in numbers.items()}
    wanted |= {
        "tokenizer.ggml.add_bos_token": str(adds_bos(renderer)).lower(),
        "tokenizer.ggml.add_eos_token": "false",
        f"{metadata.get('general.architecture')}.context_length": str(context),
    }
    found = {key: metadata.get(key) for key in wanted}
    return [f"{key} is {found[key]}, and not {value}" for key, value in wanted.items() if found[key] != value]


@cache
def _silence() -> Any:
    """What takes llama.cpp's remarks; kept, because C calls it as long as the process lives."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def _answer_logprobs(engine: Any, prompt: list[int], answer: list[int]) -> np.ndarray[Any, Any]:
    """log p of each answer token [A] in nats."""
    engine.reset()
    engine.eval([*prompt, *answer])
    logits_AV = torch.from_numpy(engine.scores[len(prompt) - 1 : len(prompt) + len(answer) - 1].copy())
    return picked(logits_AV, answer)


def picked(logits_AV: torch.Tensor, answer: list[int]) -> np.ndarray[Any, Any]:
    logprobs_AV = torch.log_softmax(logits_AV.double(), dim=-1)
    chosen: np.ndarray[Any, Any] = logprobs_AV[range(len(answer)), answer].numpy()
    return chosen


def _continued(engine: Any, prompt: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens that llama.cpp takes as the likeliest, one after the other."""
    engine.reset()
    engine.eval(prompt)
    tokens: list[int] = []
    while len(tokens) < GREEDY and (not tokens or tokens[-1] not in ends):
        tokens.append(int(engine.scores[engine.n_tokens - 1].argmax()))
        engine.eval(tokens[-1:])
    return tokens
