"""Learning from rewards: the policy gradient from a group of sampled answers to each prompt.

GRPO (Shao et al. 2024, arXiv 2402.03300), RLOO (Ahmadian et al. 2024, arXiv 2402.14740) and REINFORCE (Williams 1992)
differ in an answer's advantage. All share PPO's clipped ratio (Schulman et al. 2017, arXiv 1707.06347), token by token,
and the k3 estimator of KL (Schulman 2020). Options have the names of TRL's GRPOTrainer.

Shapes: B prompts, K answers each, A answers, N tokens of all answers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FLOOR = 1e-4  # added to the standard deviation of rewards, as TRL does

# ---------------------------------------------------------------- advantages


def grpo(rewards_BK: Tensor, scale_rewards: str) -> Tensor:
    """(r - mean of the group) / (std + 1e-4), [B, K]; the std is the group's, that of all rewards, or left out."""
    centred_BK = rewards_BK - rewards_BK.mean(dim=-1, keepdim=True)
    if scale_rewards == "none":
        return centred_BK
    spread = rewards_BK.std() if scale_rewards == "batch" else rewards_BK.std(dim=-1, keepdim=True)
    return centred_BK / (spread + FLOOR)


def rloo(rewards_BK: Tensor, scale_rewards: str) -> Tensor:
    """r - mean of the group's other rewards, [B, K]: an unbiased baseline. Rewards are not scaled."""
    others = rewards_BK.shape[-1] - 1
    return rewards_BK - (rewards_BK.sum(dim=-1, keepdim=True) - rewards_BK) / others


def reinforce(rewards_BK: Tensor, scale_rewards: str) -> Tensor:
    """r itself, [B, K]: no baseline, so equal rewards teach too, and the gradient is noisier."""
    return rewards_BK


ADVANTAGES: dict[str, Callable[[Tensor, str], Tensor]] = {"grpo": grpo, "rloo": rloo, "reinforce": reinforce}
WITHOUT_BASELINE = ("reinforce",)  # their advantages do not add up to 0 in a group


def advantages(rewards_BK: Tensor, algorithm: str, scale_rewards: str = "group") -> Tensor:
    """How much better than expected each answer is, [B, K].

    With a baseline, a group of equal rewards has exactly 0, whatever rounding makes of its mean.
    """
    found_BK = ADVANTAGES[algorithm](rewards_BK, scale_rewards)
    if algorithm in WITHOUT_BASELINE:
        return found_BK
    equal_B1 = rewards_BK.amax(dim=-1, keepdim=True) == rewards_BK.amin(dim=-1, keepdim=True)
    return found_BK.masked_fill(equal_B1, 0.0)


# ---------------------------------------------------------------- the loss of a token


def clipped(
    logprob_N: Tensor, sampled_N: Tensor, advantage_N: Tensor, epsilon: float, epsilon_high: float | None = None
) -> Tensor:
    """-min(ρ·A, clip(ρ, 1-ε, 1+ε_high)·A) with ρ = p(token) / p(token when it was sampled), [N]; at ρ = 1 it is -A."""
    ratio_N = (logprob_N - sampled_N).exp()
    bounded_N = ratio_N.clamp(1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high))
    return -torch.minimum(ratio_N * advantage_N, bounded_N * advantage_N)


def is_clipped(
    logprob_N: Tensor, sampled_N: Tensor, advantage_N: Tensor, epsilon: float, epsilon_high: float | None = None
) -> Tensor:
    """Where `clipped` has no gradient: the token has moved far enough in the wanted direction, bool [N]."""
    ratio_N = (logprob_N - sampled_N).exp()
    above_N = (ratio_N > 1 + (epsilon if epsilon_high is None else epsilon_high)) & (advantage_N > 0)
    return above_N | ((ratio_N < 1 - epsilon) & (advantage_N < 0))


def k3(logprob_N: Tensor, start_N: Tensor) -> Tensor:
    """e^d - d - 1 with d = log p_θ0 - log p, [N] in nats: unbiased for KL(p || p_θ0) on samples of p, never below 0."""
    gap_N = start_N - logprob_N
    return gap_N.exp() - gap_N - 1


# ---------------------------------------------------------------- from tokens to a step


def dapo(tokens_A: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The mean over all tokens of a step (Yu et al. 2025, arXiv 2503.14476): long answers weigh more."""
    return torch.ones_like(tokens_A), tokens_A


def per_answer(tokens_A: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The mean over answers of the mean over an answer's tokens, as GRPO first had it."""
    return 1 / tokens_A, torch.ones_like(tokens_A)


def dr_grpo(tokens_A: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The sum over tokens by answers times the longest answer allowed (Liu et al. 2025, arXiv 2503.20783)."""
    return torch.ones_like(tokens_A), torch.full_like(tokens_A, float(limit))


# tokens of each answer [A], longest answer allowed → (weight of each of its tokens [A], its part of the divisor [A]).
# TRL's bnpo is dapo within a micro-batch; what a step learns does not depend on micro-batches here, so they are one.
REDUCTIONS: dict[str, Callable[[Tensor, int], tuple[Tensor, Tensor]]] = {
    "dapo": dapo,
    "grpo": per_answer,
    "dr_grpo": dr_grpo,
    "bnpo": dapo,
}
