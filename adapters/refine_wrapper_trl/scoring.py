"""What the host sampled and paid, as the core reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from refine_wrapper.core.types import Outcome, Sample
from refine_wrapper_trl.rows import Generated

Failures = Mapping[int, tuple[Outcome, str]]
"""Row -> how scoring it failed, and the detail."""


class Scoring:
    """Samples and rewards of one trainer.

    Args:
        trainer: The TRL trainer.
        tokenizer: The policy's.
    """

    def __init__(self, trainer: Any, tokenizer: Any) -> None:
        self._trainer = trainer
        self._tokenizer = tokenizer

    def samples(self, generated: Generated, failures: Failures, policy_version: int) -> list[Sample]:
        """This rank's rows as samples, without rewards. What tools said (mask 0) is not the policy's."""
        samples: list[Sample] = []
        for row, (token_ids, mask) in enumerate(zip(generated.completion_ids, generated.masks, strict=True)):
            own = token_ids if mask is None else [t for t, kept in zip(token_ids, mask, strict=True) if kept]
            ids = tuple(int(token) for token in own)
            outcome, detail = failures.get(row, (Outcome.OK, ""))
            sample = Sample(
                text=self._tokenizer.decode(list(ids), skip_special_tokens=True),
                token_ids=ids,
                num_tokens=len(ids),
                finished=bool(ids) and ids[-1] in self._ends,
                outcome=outcome,
                detail=detail,
                policy_version=policy_version,
                prompt_ids=tuple(int(token) for token in generated.prompt_ids[row]),
            )
            samples.append(sample)
        return samples

    def scalars(self, rewards: torch.Tensor) -> list[float | None]:
        """The weighted sum the host optimises (its ``sum_then_normalize``), None where every function returned None."""
        weights = self._trainer.reward_weights.to(rewards.device).unsqueeze(0)
        total = (rewards * weights).nansum(dim=1)
        nothing = torch.isnan(rewards).all(dim=1)
        return [None if none else float(reward) for reward, none in zip(total.tolist(), nothing.tolist(), strict=True)]

    def signals(self, rewards: torch.Tensor) -> list[list[float]]:
        """What advantages come from: the weighted sum, or each function's rewards where the host normalises these."""
        trainer = self._trainer
        if getattr(trainer, "multi_objective_aggregation", "sum_then_normalize") == "normalize_then_sum":
            weighted = trainer.reward_weights.to(rewards.device) != 0
            return rewards[:, weighted].T.tolist()
        scalars = [float("nan") if reward is None else reward for reward in self.scalars(rewards)]
        clip = getattr(trainer, "reward_clip_range", None)  # RLOO's
        return [scalars if not clip else torch.tensor(scalars).clamp(clip[0], clip[1]).tolist()]

    @property
    def _ends(self) -> set[int]:
        # TRL knows several since 1.15; before, the tokenizer's.
        several = getattr(self._trainer, "eos_token_ids", None)
        return {*(several or ()), self._tokenizer.eos_token_id, self._tokenizer.pad_token_id}
