"""What an author of a plan policy writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from refine_wrapper.core.types import Action, Draft


class PlanPolicy(Protocol):
    """Decides, once Stage 1 of a group is over, how the group is answered and whether it is trained.

    Return the class from the hook ``register_plans``; it is built without arguments. Called only for groups that have
    a usable draft that fits. Must depend on its arguments alone, so that every rank plans the same.
    """

    def decide(self, group_id: str, drafts: Sequence[Draft], selected: Draft, max_reward: float) -> Action: ...
