"""The loss of TRL's trainers held against the formula: what reached it, its value and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from refine_testing.objective import Row, sequence_objective, token_objectives
from refine_testing.tiny import tiny_llama
from refine_testing.trl_host import Step, unpadded

LENGTH, EPSILON = 10, 0.1
"""Of completions; of clipping."""

Key = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompt ids and completion ids of a row."""


def aggregate(objective: str, parts: Sequence[torch.Tensor], rows: Sequence[Row], tokens_of_batch: int) -> torch.Tensor:
    """The loss of one micro-batch before accumulation, from each row's part of J. Rows not trained have parts of zero."""
    if objective == "grpo":
        return -torch.stack([part.mean() for part in parts]).mean()
    if objective == "rloo":
        return -torch.stack(list(parts)).mean()
    total = -torch.cat(list(parts)).sum()
    if objective == "dr_grpo":
        return total / (len(rows) * LENGTH)
    return total / (tokens_of_batch if objective == "dapo" else trained_tokens(rows))


def trained_tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.completion_ids) for row in rows if row.trained)


class WithGradients:
    """Goes before a trainer class: also notes the gradient of each loss."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)  # type: ignore[misc]
        self.gradients: list[Any] = getattr(self, "gradients", [])
        self.gradients.append(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))
        return loss


def keys_of(step: Step) -> list[Key]:
    prompts = unpadded(step.inputs["prompt_ids"], step.inputs["prompt_mask"])
    completions = unpadded(step.inputs["completion_ids"], step.inputs["completion_mask"])
    return [(tuple(p), tuple(c)) for p, c in zip(prompts, completions, strict=True)]


def compare_loss(
    trainer: Any,
    objective: str,
    step_number: int,
    rows: dict[Key, Row],
    old: dict[str, torch.Tensor],
    *,
    beta: float = 0.0,
    start: dict[str, torch.Tensor] | None = None,
    accumulated: int = 1,
) -> torch.Tensor:
    """One loss of the host and its gradient against the formula; returns the ratios."""
    model, step = tiny_llama(), trainer.steps[step_number]
    names = [name for name, _ in model.named_parameters()]
    weights = {name: tensor.clone().requires_grad_(name in names) for name, tensor in step.weights.items()}
    parts, ratios, used = [], [torch.empty(0)], []
    for key in keys_of(step):
        assert key in rows, "a row reached the loss that is no refinement of q'"
        used.append(rows[key])
        if not rows[key].trained:
            parts.append(torch.zeros(() if objective == "rloo" else 1))
            continue
        if objective == "rloo":
            part, ratio = sequence_objective(model, weights, old, rows[key], epsilon=EPSILON)
        else:
            part, ratio = token_objectives(model, weights, old, rows[key], epsilon=EPSILON, beta=beta, reference=start)
        parts.append(part)
        ratios.append(ratio.flatten())
    expected = aggregate(objective, parts, used, trained_tokens(list(rows.values())))
    if objective != "dapo":  # its number of tokens is that of all accumulated micro-batches already
        # RLOO leaves the division to the Trainer that it inherits from.
        expected = expected / (1 if objective == "rloo" else accumulated)
    assert step.loss == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-5), f"loss {step_number}"
    gradient = torch.autograd.grad(expected, [weights[name] for name in names])
    for name, one, other in zip(names, gradient, trainer.gradients[step_number], strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5), f"gradient {step_number} of {name}"
    return torch.cat(ratios)


def assert_clipping_mattered(ratios: Sequence[torch.Tensor]) -> None:
    away = (torch.cat(list(ratios)) - 1).abs()
    assert (away < 1e-4).any(), "no ratio is 1, so this was not the first iteration"
    assert (away > EPSILON).any(), "no ratio left the clip range, so clipping was not compared"
