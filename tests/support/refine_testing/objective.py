"""The objective of METHOD.md computed from token ids, rewards and weights, row by row: no padding, no host code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call


@dataclass
class Row:
    """One completion as the objective sees it.

    Attributes:
        prompt_ids: What it was sampled from: q' where the group was refined.
        completion_ids: Its tokens.
        advantage: From the rewards of its group.
        trained: Whether it carries a gradient.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    advantage: float
    trained: bool = True


def token_logps(model: Any, weights: dict[str, torch.Tensor], row: Row, temperature: float = 1.0) -> torch.Tensor:
    """log pi(o_t | q', o_<t) for every token of one completion."""
    device = next(iter(weights.values())).device
    ids = torch.tensor([row.prompt_ids + row.completion_ids], device=device)
    logits = functional_call(model, weights, kwargs={"input_ids": ids, "use_cache": False}).logits[0].float()
    of_completion = logits[len(row.prompt_ids) - 1 : -1] / temperature
    return of_completion.log_softmax(-1)[range(len(row.completion_ids)), row.completion_ids].cpu()


def grpo_advantages(rewards: Sequence[float], group_size: int, *, scaled: bool = True) -> list[float]:
    """A_j = (R_j - mean R) / std R, within the group; the host adds 1e-4 to the deviation."""
    groups = torch.tensor(rewards, dtype=torch.float32).view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if scaled:
        centred = centred / (groups.std(1, keepdim=True) + 1e-4)
    return centred.flatten().tolist()


def leave_one_out_advantages(rewards: Sequence[float], group_size: int) -> list[float]:
    """A_j = R_j - mean of the others."""
    groups = torch.tensor(rewards, dtype=torch.float32).view(-1, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten().tolist()


def clipped(ratio: torch.Tensor, advantage: float, epsilon: float) -> torch.Tensor:
    """min(r A, clip(r, 1 - eps, 1 + eps) A)"""
    return torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)


def token_objectives(
    model: Any,
    weights: dict[str, torch.Tensor],
    old: dict[str, torch.Tensor],
    row: Row,
    *,
    epsilon: float,
    beta: float = 0.0,
    reference: dict[str, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summand of J for every token, with the estimate of KL that the host documents; and the ratios."""
    logps = token_logps(model, weights, row)
    with torch.no_grad():
        old_logps = token_logps(model, old, row)
    ratio = (logps - old_logps).exp()
    objective = clipped(ratio, row.advantage, epsilon)
    if beta:
        assert reference is not None
        with torch.no_grad():
            away = token_logps(model, reference, row)
        objective = objective - beta * ((away - logps).exp() - (away - logps) - 1)
    return objective, ratio.detach()


def sequence_objective(
    model: Any, weights: dict[str, torch.Tensor], old: dict[str, torch.Tensor], row: Row, *, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """RLOO: the ratio of whole completions."""
    with torch.no_grad():
        old_logp = token_logps(model, old, row).sum()
    ratio = (token_logps(model, weights, row).sum() - old_logp).exp()
    return clipped(ratio, row.advantage, epsilon), ratio.detach()
