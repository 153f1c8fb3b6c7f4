"""`sparring lab pretrain`: make the laboratory's base model from nothing.

A Llama of about 0.1 M parameters learns the corrupted world by plain maximum likelihood, so that it
writes well-formed answers of which about half are wrong. The same seed on the same machine gives the
same bytes. What is left out on purpose: checkpoints, mixed precision, more than one device.
"""

from __future__ import annotations

import math
import platform
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import transformers

from sparring.errors import ModelError
from sparring.laboratory import world
from sparring.laboratory.exact import Score, measure
from sparring.laboratory.tokenizer import build

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

THREADS = 2  # fixed, because the order of a sum, and so its last bit, depends on it
STEPS = 2000
BATCH_SIZE = 128
LR = 3e-3
WARMUP = 100  # steps


def pretrain(
    out: Path,
    seed: int = 0,
    *,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train the base and write it to the folder `out` in the Hugging Face layout.

    steps         optimiser steps, each on batch_size fresh answers of the corrupted world
    force         replace `out` if it is a model's folder; otherwise an existing `out` is a ModelError
    say           gets the progress lines

    Returns the exact divergences from p_data over all 1000 prompts (see `world.exact`).
    The folder is written under a temporary name and renamed last.
    """
    out = out.absolute()
    _may_write(out, force)
    started = time.monotonic()
    with seeded(seed):
        tokenizer = build()
        model = new_model(tokenizer)
        _train(model, tokenizer, random.Random(f"laboratory pretraining {seed}"), steps, batch_size, say)
        measured = measure(scorer(model), tokenizer, world.PROMPTS)
    say(f"exact KL {measured['kl']:.4f} nats, valid mass {measured['valid_mass']:.4f}")
    _save(model, tokenizer, out, _card(model, seed, steps, batch_size, measured))
    say(f"{out} written after {time.monotonic() - started:.0f} s")
    return measured


def new_model(tokenizer: PreTrainedTokenizerFast, hidden: int = 64, inner: int = 192) -> LlamaForCausalLM:
    """An untrained base, fp32, from torch's random state; its end token is the tokenizer's.

    hidden, inner   widths of a layer and of its MLP
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config)


def scorer(model: torch.nn.Module, batch: int = 512) -> Score:
    """A `score` for `exact.measure`, for prompts and answers that are all of one length."""

    @torch.no_grad()
    def score(prompt_ids: list[list[int]], answer_ids: list[list[int]]) -> list[float]:
        ids_BL = torch.tensor([p + a for p, a in zip(prompt_ids, answer_ids, strict=True)])
        split = len(prompt_ids[0])
        sums = [_logprobs(model, part_BL, split).double().sum(-1) for part_BL in torch.split(ids_BL, batch)]
        scores: list[float] = torch.cat(sums).tolist()
        return scores

    return score


# ---------------------------------------------------------------- training


def _logprobs(model: torch.nn.Module, ids_BL: torch.Tensor, split: int) -> torch.Tensor:
    """Log-probs [B, L - split], in nats, of the tokens from `split` on."""
    logits_BLV = model(input_ids=ids_BL).logits[:, split - 1 : -1]
    targets_BL1 = ids_BL[:, split:, None]
    return F.log_softmax(logits_BLV.float(), -1).gather(-1, targets_BL1).squeeze(-1)


def _train(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    steps: int,
    batch_size: int,
    say: Callable[[str], None],
) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    split = len(tokenizer(world.PROMPTS[0])["input_ids"])
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LR * schedule(step, steps)
        drawn = rng.choices(world.PROMPTS, k=batch_size)
        texts = [f"{prompt}{world.corrupted_sample(prompt, rng)}{tokenizer.eos_token}" for prompt in drawn]
        loss = -_logprobs(model, torch.tensor(tokenizer(texts)["input_ids"]), split).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % max(1, steps // 20) == 0:
            say(f"step {step + 1}/{steps}  loss {loss.item():.4f} nats per token")
    model.eval()


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    warm = min(1.0, (step + 1) / min(WARMUP, max(1, steps)))
    return warm * (0.55 + 0.45 * math.cos(math.pi * step / max(1, steps)))


@contextmanager
def seeded(seed: int, count: int = THREADS) -> Iterator[None]:
    """Fixed random state and threads inside; the caller's own afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


# ---------------------------------------------------------------- the folder


def _may_write(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise ModelError(f"{out} exists; give another --out, or --force to replace it")
    if not (out / "config.json").is_file():
        raise ModelError(f"{out} is not a model's folder, which is all that --force replaces; give another --out")


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, card: str) -> None:
    """Write everything beside `out`, then rename: `out` is the old folder, the new one, or not there."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone, and this folder is packaged
    replaced = out.with_name(f".{out.name}.replaced")
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def _card(model: torch.nn.Module, seed: int, steps: int, batch_size: int, measured: dict[str, float]) -> str:
    """The folder's README. It holds no date, time or path, so that equal runs give equal bytes."""
    if (steps, batch_size) == (STEPS, BATCH_SIZE):
        command = f"sparring lab pretrain --out FOLDER --seed {seed}"
    else:
        command = f'pretrain(Path("FOLDER"), seed={seed}, steps={steps}, batch_size={batch_size})'
    table = "\n".join(f"| {name} | {value:.6f} |" for name, value in measured.items())
    return _CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        command=command,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        machine=platform.machine(),
        threads=THREADS,
        table=table,
    )


_CARD = """\
---
license: apache-2.0
library_name: transformers
---
# The laboratory's base model

A Llama of {parameters} parameters (fp32), trained from nothing on Sparring's corrupted world of
three-digit sums. It writes well-formed answers in the wrong proportions, about half of them with a
wrong sum: a weak model, to be fine-tuned. It is good for nothing else. All its data is generated.

Made by

    {command}

seed {seed}, {steps} steps of {batch_size} answers, Python {python}, torch {torch},
transformers {transformers}, {machine}, {threads} threads. The same command gives the same bytes on
the same machine.

Exact, against p_data (`sparring.laboratory.world.exact`), means over all 1000 prompts, nats per answer:

| measure | value |
|---|---|
{table}
"""
