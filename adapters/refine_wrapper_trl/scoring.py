"""What the host sampled and paid, as the core reads it."""

from __future__ import annotations

from typing import Any

import torch


class Scoring:
    """Texts and rewards of one trainer.

    Args:
        trainer: The TRL trainer.
        tokenizer: The policy's.
    """

    def __init__(self, trainer: Any, tokenizer: Any) -> None:
        self._trainer = trainer
        self._tokenizer = tokenizer

    def scalars(self, rewards: torch.Tensor) -> list[float]:
        """The weighted sum the host optimises (its ``sum_then_normalize``), NaN where every function returned None."""
        weights = self._trainer.reward_weights.to(rewards.device).unsqueeze(0)
        total = (rewards * weights).nansum(dim=1)
        total[torch.isnan(rewards).all(dim=1)] = torch.nan
        return [float(reward) for reward in total.tolist()]

    def signals(self, rewards: torch.Tensor) -> list[list[float]]:
        """What advantages come from: the weighted sum, or each function's rewards where the host normalises these."""
        trainer = self._trainer
        if getattr(trainer, "multi_objective_aggregation", "sum_then_normalize") == "normalize_then_sum":
            weighted = trainer.reward_weights.to(rewards.device) != 0
            return rewards[:, weighted].T.tolist()
        scalars = self.scalars(rewards)
        clip = getattr(trainer, "reward_clip_range", None)  # RLOO's
        return [scalars if not clip else torch.tensor(scalars).clamp(clip[0], clip[1]).tolist()]

    def decode(self, token_ids: list[int], mask: list[int] | None = None) -> tuple[str, int, bool]:
        """Text, number of sampled tokens, and whether it ended by itself.

        Tool results (mask 0) are not the policy's.
        """
        own = token_ids if mask is None else [token for token, kept in zip(token_ids, mask, strict=True) if kept]
        ids = [int(token) for token in own]
        return self._tokenizer.decode(ids, skip_special_tokens=True), len(ids), bool(ids) and ids[-1] in self._ends

    @property
    def _ends(self) -> set[int]:
        # TRL knows several since 1.15; before, the tokenizer's.
        several = getattr(self._trainer, "eos_token_ids", None)
        return {*(several or ()), self._tokenizer.eos_token_id, self._tokenizer.pad_token_id}
