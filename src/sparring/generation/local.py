"""Generation with the model in memory: rows enter as places are free, are decoded together, and leave as they end.

A row enters with all of its prompt but the last token in the cache; equal prompts are computed once. The first step
then reads the prompt's last token, and every later one the token chosen before.

Shapes: B rows that are being decoded, N all rows asked for, L longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from sparring.config import GenerationConfig
from sparring.errors import ModelError
from sparring.generation.base import Answer
from sparring.generation.cache import Held, Numbers, cache_for
from sparring.generation.sampling import Keys, draw, uniforms
from sparring.models.base import Base
from sparring.models.virtual import placed

MOST_ROWS = 512  # decoding gains little from more rows at once

# Prompts are computed together up to this many tokens, padding included: enough for the matrix products, and
# few enough that prompts of much different lengths do not pad each other.
PROMPT_TOKENS = {"cpu": 1024, "cuda": 16384}

# New rows wait until this share of the places is free, so that their prompts too are computed together.
FREE_SHARE = 4


def cache_tokens(base: Base) -> int:
    """How many tokens' keys and values fit in 1 GiB (on CUDA 8 GiB)."""
    known = base.model.config.get_text_config().to_dict()
    heads = known.get("num_attention_heads") or 1  # none in a state-space model, whose state is smaller than this
    width = known.get("head_dim") or base.model.get_input_embeddings().weight.shape[1] // heads
    layers = known.get("num_hidden_layers") or 1
    per_token = 2 * layers * (known.get("num_key_value_heads") or heads) * width * base.dtype.itemsize
    return int((8 if base.device.type == "cuda" else 1) * 2**30 // per_token)


@dataclass(frozen=True, slots=True)
class _Book:
    """What has been said so far, row by row of all that are asked for."""

    asked_N: Numbers  # the prompt's tokens
    limit_N: Numbers
    said_N: Numbers
    last_N: Numbers  # the token that is read next
    ended_N: NDArray[np.bool_]
    logprob_N: NDArray[np.float64]
    ids_NA: NDArray[np.int32]

    @staticmethod
    def blank(prompts: Sequence[list[int]], limits: Numbers) -> _Book:
        count = len(prompts)
        return _Book(
            np.array([len(prompt) for prompt in prompts], dtype=np.int64),
            limits,
            np.zeros(count, dtype=np.int64),
            np.array([prompt[-1] for prompt in prompts], dtype=np.int64),
            np.zeros(count, dtype=np.bool_),
            np.zeros(count),
            np.zeros((count, max(0, int(limits.max(initial=0)))), dtype=np.int32),
        )

    def write(self, rows_B: Numbers, token_B: Numbers, logprob_B: NDArray[np.float64], ends: Numbers) -> Any:
        """Note a token of each of some rows; returns which of them go on, [B]."""
        self.ids_NA[rows_B, self.said_N[rows_B]] = token_B
        self.last_N[rows_B] = token_B
        self.said_N[rows_B] += 1
        self.logprob_N[rows_B] += logprob_B
        ended_B = (token_B[:, None] == ends).any(axis=-1)
        self.ended_N[rows_B] = ended_B
        return ~ended_B & (self.said_N[rows_B] < self.limit_N[rows_B])

    def answers(self) -> list[Answer]:
        finish = np.where(self.ended_N, "end", "length").tolist()
        said = zip(self.ids_NA, self.said_N.tolist(), finish, self.logprob_N.tolist(), strict=True)
        return [Answer(ids[:count].tolist(), reason, logprob) for ids, count, reason, logprob in said]


class LocalGenerator:
    """Decodes with a transformers model."""

    def __init__(self, model: Any, base: Base, config: GenerationConfig) -> None:
        self.model = model
        self.base = base
        self.config = config

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[list[int]],
        keys: Keys,
        max_new_tokens: int,
        told: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:
        """One answer per prompt in the order given. A prompt and its answer never exceed the context.

        told  called with (row, token id) as each is decoded; what it raises ends the decoding
        """
        prelude = self.base.prelude
        prompts = [prelude + prompt for prompt in prompts] if prelude else prompts
        book = _Book.blank(prompts, self._limits(prompts, max_new_tokens))
        ends = np.array(self.base.renderer.end_ids, dtype=np.int64)
        cache = cache_for(self.base.model.config)
        most = MOST_ROWS if cache.mixed or _reorders(self.model, self.base) else 1
        same, waiting = _order(prompts)
        waiting = waiting[book.limit_N[waiting] > 0]
        rows_B = waiting[:0]
        while len(rows_B) or len(waiting):
            count = self._free(cache, book, rows_B, waiting, same, most)
            if count:
                for group in self._groups(cache, prompts, waiting[:count], same):
                    self._enter(cache, prompts, group, same)
                rows_B, waiting = np.concatenate([rows_B, waiting[:count]]), waiting[count:]
            logits_BV = self._step(cache, book, rows_B)
            u_B = uniforms(keys[rows_B], book.said_N[rows_B])
            token_B, logprob_B = draw(logits_BV, u_B, self.config.temperature, self.config.top_p)
            goes_on_B = book.write(rows_B, token_B.cpu().numpy(), logprob_B.cpu().numpy(), ends)
            if told is not None:
                for row in rows_B.tolist():
                    told(row, int(book.last_N[row]))
            if not goes_on_B.all():
                index_B = _closed_up(goes_on_B)
                cache.keep(index_B)
                rows_B = rows_B[index_B]
        return book.answers()

    def _limits(self, prompts: Sequence[list[int]], max_new_tokens: int) -> Numbers:
        room = [self.base.context - len(prompt) for prompt in prompts]
        return np.minimum(np.array(room, dtype=np.int64), max_new_tokens)

    # ------------------------------------------------------------ rows enter

    def _free(self, cache: Held, book: _Book, rows_B: Numbers, waiting: Numbers, same: Numbers, most: int) -> int:
        """How many of those who wait enter now; makes room for them. Samples of one prompt enter together."""
        if not len(waiting) or (len(rows_B) and not cache.mixed):
            return 0
        everyone = np.concatenate([rows_B, waiting])
        columns = int((book.asked_N + book.limit_N)[everyone].max())
        budget = self.config.batch_tokens or cache_tokens(self.base)
        places = min(most, max(1, budget // columns), len(everyone))
        count = min(places - len(rows_B), len(waiting))
        if count < 1 or (len(rows_B) and count < min(len(waiting), places // FREE_SHARE)):
            return 0
        if not cache.mixed:
            count = min(count, int((book.asked_N[waiting] == book.asked_N[waiting[0]]).sum()))
        together = count
        while together and together < len(waiting) and same[waiting[together]] == same[waiting[together - 1]]:
            together -= 1
        if not together and len(rows_B):
            return 0  # until there is room for more samples of this prompt, at the latest when all have left
        # Where rows will follow, room behind the last column: what is in use is then seldom moved to the left.
        cache.reserve(places, columns + (columns // 8 + 16 if len(everyone) > places else 0))
        return together or count

    def _groups(self, cache: Held, prompts: Sequence[list[int]], entering: Numbers, same: Numbers) -> Iterator[Numbers]:
        """Entering rows whose prompts are computed together: longest first, equal prompts side by side."""
        most = PROMPT_TOKENS[self.base.device.type] if cache.mixed else 2**62
        start, distinct = 0, 1
        for place in range(1, len(entering)):
            distinct += int(same[entering[place]] != same[entering[place - 1]])
            if distinct * len(prompts[entering[start]]) > most:
                yield entering[start:place]
                start, distinct = place, 1
        yield entering[start:]

    def _enter(self, cache: Held, prompts: Sequence[list[int]], group: Numbers, same: Numbers) -> None:
        """Compute the prompts of some rows, each distinct one once, but for their last tokens."""
        distinct, source = np.unique(same[group], return_inverse=True)
        lengths = np.array([len(prompts[i]) - 1 for i in group], dtype=np.int64)
        prefix = cache.blank()
        if lengths.max():
            ids = torch.full((len(distinct), int(lengths.max())), self.base.pad_id, dtype=torch.long)
            for row, index in enumerate(distinct):
                ids[row, : len(prompts[index]) - 1] = torch.tensor(prompts[index][:-1], dtype=torch.long)
            ids = ids.to(self.base.device)
            places = placed(self.base.model, ids)
            # Padding stands on the right, where causal attention never looks: no mask. No logits are wanted.
            self.model(
                input_ids=ids,
                **({} if places is None else {"position_ids": places}),
                past_key_values=prefix,
                use_cache=True,
                logits_to_keep=torch.zeros(0, dtype=torch.long, device=self.base.device),
            )
        cache.enter(prefix, source, lengths)

    # ------------------------------------------------------------ rows go on

    def _step(self, cache: Held, book: _Book, rows_B: Numbers) -> Tensor:
        """Next-token logits [B, V]; every row's last token is now in the cache."""
        device = self.base.device
        position_B = book.asked_N[rows_B] + book.said_N[rows_B] - 1
        output = self.model(
            input_ids=torch.from_numpy(book.last_N[rows_B]).unsqueeze(-1).to(device),
            attention_mask=cache.before_step(device),
            position_ids=torch.from_numpy(position_B).unsqueeze(-1).to(device),
            past_key_values=cache.content,
            use_cache=True,
        )
        cache.after_step()
        logits: Tensor = output.logits[:, -1]
        return logits


def _reorders(model: Any, base: Base) -> bool:
    """Whether rows of a cache of a special kind can change places: tried on two, for some states lie elsewhere.

    Raises ModelError for a model that does not go on from a cache at all.
    """
    try:
        if _goes_on(model, base, [1, 0]):
            return True
        why = "its answers would be wrong" if not _goes_on(model, base, [0]) else ""
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        why = " ".join(str(error).split())[:120]
    if why:
        raise ModelError(
            f"this base cannot go on from a cache ({why}), so it cannot be played; give another model.base"
        )
    return False


def _goes_on(model: Any, base: Base, order: list[int]) -> bool:
    """Whether some prompts, computed but for their last tokens, go on in a new order as they would from nothing."""
    index = torch.tensor(order, device=base.device)
    ids = torch.tensor([[5, 6, 7, 8], [8, 5, 5, 6]], device=base.device)[: len(order)] % base.vocabulary
    cache = DynamicCache(config=model.config)
    model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
    if len(order) > 1:
        cache.reorder_cache(index)
    last = torch.full((len(order), 1), ids.shape[1] - 1, device=base.device)
    step = model(input_ids=ids[index, -1:], past_key_values=cache, position_ids=last, use_cache=True)
    plain = model(input_ids=ids[index], use_cache=False)
    got_BV, expected_BV = (output.logits[:, -1].float().log_softmax(-1) for output in (step, plain))
    near = 1e-3 if base.dtype == torch.float32 else 0.1
    return bool((got_BV - expected_BV).square().mean().sqrt() < near)


def _order(prompts: Sequence[list[int]]) -> tuple[Numbers, Numbers]:
    """(the first row with the same prompt, by row; all rows, longest prompts first and equal ones side by side)."""
    first: dict[tuple[int, ...], int] = {}
    same = [first.setdefault(tuple(prompt), index) for index, prompt in enumerate(prompts)]
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), same[i], i))
    return np.array(same, dtype=np.int64), np.array(order, dtype=np.int64)


def _closed_up(goes_on_B: NDArray[np.bool_]) -> Numbers:
    """Which row comes to each place when some leave: the last ones fill the holes, the others stay."""
    count = int(goes_on_B.sum())
    index_B = np.arange(count)
    index_B[~goes_on_B[:count]] = np.flatnonzero(goes_on_B[count:]) + count
    return index_B
