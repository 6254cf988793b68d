from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refine_wrapper.core.selection.interface import SelectionContext, reward_of
from refine_wrapper.core.types import Sample


@dataclass(frozen=True, slots=True)
class BestImperfect:
    """The best draft that is not yet at the maximum reward, so that there is something to improve; else the best.

    Ties: the lowest draft index. The maximum is ``max_reward``.
    """

    def select(self, drafts: Sequence[Sample], context: SelectionContext) -> Sample:
        imperfect = [draft for draft in drafts if reward_of(draft) < context.max_reward]
        return max(imperfect or drafts, key=reward_of)
