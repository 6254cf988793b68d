from __future__ import annotations

from collections.abc import Sequence

from refine_wrapper.core.types import Action, Draft


class Paper:
    """Every group is refined, and only refinements are trained (iGRPO, arXiv 2602.09000)."""

    def decide(self, group_id: str, drafts: Sequence[Draft], selected: Draft, max_reward: float) -> Action:
        return Action.REFINE
