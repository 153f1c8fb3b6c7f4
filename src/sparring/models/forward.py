"""The forward pass of scoring and training, the same for both: token ids → log-probs of the answers' tokens.

How a model is called (its `Layout`) is found out by numbers when it is loaded (models/layout.py).
Shapes: N answer tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from sparring.data.collate import Batch
from sparring.models.head import Head, confidences, surprises


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model is called.

    packed       prompts shared in packed rows (data/packing.py); else a padded row for each answer
    flash        packed rows with flash attention for sequences of varying length (CUDA)
    direct       the decoder's output goes to our own head (models/head.py); else the model makes its own logits
    why          in words, why prompts cannot be shared; empty if they are
    temperature  the logits are divided by it (`Base.at`); 1 in training
    """

    packed: bool = False
    flash: bool = False
    direct: bool = False
    why: str = ""
    temperature: float = 1.0


def token_logprobs(model: Any, batch: Batch, layout: Layout) -> Tensor:
    """log p of every answer token given what stands before it, in nats, fp32, [N]."""
    head, hidden_ND = _outputs(model, batch, layout)
    return head.logprobs(hidden_ND, batch.targets_N)


def token_surprises(model: Any, batch: Batch, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """(log p of every answer token, entropy of its distribution, variance of log p), each fp32 [N]."""
    head, hidden_ND = _outputs(model, batch, layout)
    return surprises(head, hidden_ND, batch.targets_N)


def token_confidences(model: Any, batch: Batch, layout: Layout) -> tuple[Tensor, Tensor]:
    """(probability of the likeliest token, whether it is the answer's own), at every answer token, each [N]."""
    head, hidden_ND = _outputs(model, batch, layout)
    return confidences(head, hidden_ND, batch.targets_N)


def token_states(model: Any, batch: Batch, layout: Layout) -> Tensor:
    """The last hidden state at every position that predicts an answer token, after the final norm, [N, D]."""
    if layout.direct:
        return _decoded(model, batch)[1]
    said = model(input_ids=batch.input_ids_BL, output_hidden_states=True, use_cache=False, **_places(batch))
    hidden_BLD: Tensor = said.hidden_states[-1]
    return hidden_BLD.flatten(0, 1).index_select(0, batch.at_N)


def _outputs(model: Any, batch: Batch, layout: Layout) -> tuple[Head, Tensor]:
    """A head, and what it takes at the positions that predict answer tokens, [N, D]."""
    head, hidden_ND = _called(model, batch, layout)
    return (head if layout.temperature == 1.0 else replace(head, temperature=layout.temperature)), hidden_ND


def _called(model: Any, batch: Batch, layout: Layout) -> tuple[Head, Tensor]:
    if not layout.direct:
        return _ready_logits(model, batch)
    inner, hidden_ND = _decoded(model, batch)
    return Head.of(inner), hidden_ND


def _decoded(model: Any, batch: Batch) -> tuple[Any, Tensor]:
    """(the model without adapters' wrapping, its decoder's output at the positions that predict answer tokens)."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    given: dict[str, Any] = {"input_ids": batch.input_ids_BL, "use_cache": False}
    if batch.unpacking is not None:
        # a mask of four dimensions is taken as it is, so none is made; attention does not look at it
        nothing = torch.zeros(1, 1, 1, 1, device=batch.input_ids_BL.device)
        given |= {"position_ids": batch.positions_BL, "attention_mask": nothing, "unpacking": batch.unpacking}
    else:
        given |= _places(batch)
    # Ordinary rows get no mask: padding stands on the right, where causal attention never looks,
    # and without a mask the attention kernels are faster (1.3 to 1.7 times on a CPU).
    hidden_BLD: Tensor = inner.get_decoder()(**given)[0]
    return inner, hidden_BLD.flatten(0, 1).index_select(0, batch.at_N)


def _places(batch: Batch) -> dict[str, Tensor]:
    """Positions other than 0, 1, 2 …; with a mask that hides nothing, for without one transformers sees packed rows."""
    if batch.positions_BL is None:
        return {}
    return {"position_ids": batch.positions_BL, "attention_mask": torch.ones_like(batch.input_ids_BL)}


def _ready_logits(model: Any, batch: Batch) -> tuple[Head, Tensor]:
    """The model's own logits, [N, V], and a head that has nothing left to do."""
    length = batch.input_ids_BL.shape[1]
    row_N, place_N = batch.at_N // length, batch.at_N % length
    kept = torch.arange(int(place_N.min()), length, device=batch.at_N.device)
    given = _places(batch)
    logits_BAV: Tensor = model(input_ids=batch.input_ids_BL, logits_to_keep=kept, use_cache=False, **given).logits
    if logits_BAV.shape[1] != len(kept):  # it gives them all
        logits_BAV = logits_BAV[:, -len(kept) :]
    return Head(nn.Identity(), logits_BAV.shape[-1]), logits_BAV[row_N, place_N - kept[0]]
