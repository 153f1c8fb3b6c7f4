"""The likelihood of the real answers: fine-tuning's loss, and self-play's anchor.

Shapes: B answers.
"""

from __future__ import annotations

from torch import Tensor


def nll_per_token(logprob_B: Tensor, tokens_B: Tensor) -> Tensor:
    """-log p(y|x) / |y| in nats per token, shape [B]: every answer weighs the same.

    As the anchor it is the NLL term of Iterative RPO (Pang et al. 2024, arXiv 2404.19733, eq. 1).
    """
    return -logprob_B / tokens_B
