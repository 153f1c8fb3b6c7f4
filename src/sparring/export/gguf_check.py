"""Is a GGUF file the model that it was made from? Asked of llama.cpp itself, in the file's own numbers.

Three questions: are the same texts and chats the same tokens; does the file go on as the model would, greedily; and
are held-out answers as likely. Attention's keys and values are kept in 32 bits, so that the file is measured and not
llama.cpp's cache of 16 bits.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparring.config import ModelConfig
from sparring.data.messages import Renderer
from sparring.errors import InputError, LawBroken
from sparring.export.engines import need
from sparring.export.gguf_family import shape_of
from sparring.export.gguf_heard import GREEDY, Chat, Heard, Row, listen, picked
from sparring.export.gguf_tokenizer import ASKED
from sparring.export.targets import KINDS
from sparring.models.base import load_base, load_renderer

# How far the NLL per token of held-out answers may be from the model's, in nats. It is the rounding of weights (and
# below 32 bits of activations) that moves it, so it is the more, the smaller a model is.
TOLERANCE = {
    "f32": 5e-4, "f16": 2e-3, "bf16": 5e-3, "q8_0": 1e-2, "q5_1": 0.1, "q5_0": 0.1, "q4_1": 0.2, "q4_0": 0.2
}  # fmt: skip
# A greedy token that is not the model's own counts as a tie if the model's logits of both are no further apart: as far
# as two ways of computing one model differ. Quantised files may go on in another way, and are not asked.
TIE = {"f32": 0.01, "f16": 0.05}

UNMOVED = 1e-3  # nats per token: a player that training moved no further cannot be told from its base
ROWS, LENGTH = 16, 1024  # held-out rows that are taken, and their tokens at most
LOGITS = 2**27  # numbers that llama-cpp-python may hold of one row: 512 MiB


@dataclass(frozen=True, slots=True)
class Checked:
    """What was measured.

    rows, tokens  held-out answers, and their tokens together
    model, file   NLL per token of the answers in nats, by transformers in fp32 and by llama.cpp
    largest       the largest |Δ log p| of a single token
    greedy, ties  tokens that the file continued greedily (0: not asked), and how many of them were ties
    texts, chats  texts and rendered chats that are the same tokens for both
    apart         difficult texts that are not, because llama.cpp puts a space before a text in another way
    """

    kind: str
    rows: int
    tokens: int
    model: float
    file: float
    largest: float
    greedy: int
    ties: int
    texts: int
    chats: int
    apart: int

    def same(self) -> str:
        """What is the same, beside how likely answers are."""
        greedy = f", {self.greedy} greedy tokens" if self.greedy else ""
        return f"{self.texts} texts, {self.chats} chats{greedy}"

    def odd(self) -> str:
        """What is nearly the same, in words; empty if nothing is."""
        said = [f"{self.ties} of the greedy tokens are ties"] * bool(self.ties)
        if self.apart:
            said.append(
                f"{self.apart} texts that open with a space are other tokens, which llama.cpp cannot have the same"
            )
        return "; ".join(said)

    def said(self) -> str:
        """All of it in a sentence."""
        text = (
            f"held-out NLL per token {self.file:.5f} in llama.cpp, {self.model:.5f} in the model "
            f"({self.file - self.model:+.2g}, allowed: {TOLERANCE[self.kind]:g}; largest |Δ log p| of a token "
            f"{self.largest:.2g}); the same: {self.same()}"
        )
        return text + (f"; {self.odd()}" if self.odd() else "")

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {"event": "checked", **asdict(self), "tolerance": TOLERANCE[self.kind]}


def verify_gguf(
    file: Path,
    folder: Path,
    kind: str,
    rows: Sequence[Row],
    chats: Sequence[Chat] = (),
    lora: Path | None = None,
    before: Sequence[Sequence[float]] = (),
) -> Checked:
    """Load the file in llama.cpp and hold it against the model folder that it was made from.

    rows   held-out (prompt ids, answer ids), each of one token at least; the first few are taken, long ones cut
    chats  conversations that are to render to the same tokens, besides some of our own; only with a chat template
    lora   a GGUF adapter that goes with the file; `folder` is then the model with the adapter merged
    before  log p of each row's tokens under the base that was trained: the file must be nearer to the model
    Raises LawBroken naming what differs; the file (or the adapter) then has the name `*.unverified.gguf`.
    """
    need("gguf", "llama_cpp")
    shape = shape_of(folder)
    room = min(LENGTH, shape.context, LOGITS // shape.settings.vocab_size)
    if not rows or room <= GREEDY or kind not in KINDS:
        raise InputError(
            f"a file in {kind} cannot be checked with {len(rows)} held-out rows in {room} tokens of context"
        )
    chosen = [_cut(row, room) for row in rows[:ROWS]]
    renderer = load_renderer(folder, ModelConfig(base=str(folder)))
    suspect = file if lora is None else lora
    try:
        heard = listen(file, lora, renderer, chosen, [*ASKED, *chats], shape.context, kind in TIE)
    except ValueError as error:  # llama.cpp cannot load it
        raise _unverified(suspect, [f"llama.cpp cannot load it ({error})"]) from error
    gc.collect()
    whole = {n: before[n] for n, row in enumerate(rows[:ROWS]) if before and row == chosen[n]}
    found, differ = _compare(folder, renderer, kind, chosen, heard, whole)
    wrong = [*heard.differ, *differ]
    if not abs(found.file - found.model) <= TOLERANCE[kind]:
        wrong.append(
            f"the held-out NLL per token is {found.file:.5f}, that of the model {found.model:.5f} "
            f"({found.file - found.model:+.2g}, allowed in {kind}: {TOLERANCE[kind]:g})"
        )
    if wrong:
        raise _unverified(suspect, wrong)
    return found


def _cut(row: Row, room: int) -> Row:
    """A row that leaves room to continue its prompt: the end of the prompt, the beginning of the answer."""
    prompt, answer = row
    if len(prompt) + max(len(answer), GREEDY) > room:
        answer = answer[: room // 2]
        prompt = prompt[-(room - max(len(answer), GREEDY)) :]
    return prompt, answer


def _unverified(file: Path, wrong: list[str]) -> LawBroken:
    aside = file.with_name(f"{file.name.removesuffix('.gguf')}.unverified.gguf")
    os.replace(file, aside)
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return LawBroken(
        f"law 12: {file.name} is not the model it was made from: {'; '.join(wrong[:3])}{more}; see {aside}"
    )


@torch.no_grad()
def _compare(
    folder: Path,
    renderer: Renderer,
    kind: str,
    rows: Sequence[Row],
    heard: Heard,
    before: dict[int, Sequence[float]],
) -> tuple[Checked, list[str]]:
    """(what was measured, what is not the model's): with the folder's weights in fp32.

    before  by row: log p of its tokens under the base
    """
    model = load_base(folder, ModelConfig(base=str(folder), dtype="fp32", device="cpu"), renderer).model
    mine = [picked(_logits(model, prompt, answer), answer) for prompt, answer in rows]
    differ, ties, count = [], 0, 0
    for (prompt, _), tokens in zip(rows, heard.greedy, strict=False):
        logits_GV = _logits(model, prompt, tokens)
        gaps_G = logits_GV.max(dim=-1).values - logits_GV[range(len(tokens)), tokens]
        count += len(tokens)
        ties += int(((gaps_G > 0) & (gaps_G <= TIE[kind])).sum())
        if bool((gaps_G > TIE[kind]).any()):
            place = int((gaps_G > TIE[kind]).int().argmax())
            differ.append(
                f"greedy token {place + 1} after a prompt of {len(prompt)} is {float(gaps_G[place]):.3g} below the "
                f"model's likeliest in its logits (a tie is {TIE[kind]:g})"
            )
    differ += _nearer_to_base(heard.logprobs, mine, before)
    theirs, ours = np.concatenate(heard.logprobs), np.concatenate(mine)
    found = Checked(
        kind,
        len(rows),
        len(ours),
        -float(ours.mean()),
        -float(theirs.mean()),
        float(np.abs(theirs - ours).max()),
        count,
        ties,
        heard.texts,
        heard.chats,
        heard.apart,
    )
    return found, differ


def _nearer_to_base(theirs: Sequence[Any], ours: Sequence[Any], before: dict[int, Sequence[float]]) -> list[str]:
    """Whether the file's answers are as those of the base, before training, rather than the model's; in words."""
    if not before:
        return []
    file, model, base = (np.concatenate([part[n] for n in before]) for part in (theirs, ours, before))
    moved, to_model, to_base = (float(np.sqrt(np.mean(gap**2))) for gap in (model - base, file - model, file - base))
    if moved < UNMOVED or to_model < to_base:
        return []
    return [
        f"the log-prob of a token is {to_model:.2g} nats from the model's and {to_base:.2g} from the untrained base's "
        "(root mean squares), so nothing is left of what training did"
    ]


def _logits(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """[A, V] before each token of the answer."""
    ids = torch.tensor([[*prompt, *answer]])
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits
    return logits[0, :-1].float()
