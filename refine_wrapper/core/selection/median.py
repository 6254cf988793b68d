from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refine_wrapper.core.selection.interface import SelectionContext, reward_of
from refine_wrapper.core.types import Sample


@dataclass(frozen=True, slots=True)
class Median:
    """The draft in the middle by reward; of an even number, the lower of the two. Ties: the lowest draft index."""

    def select(self, drafts: Sequence[Sample], context: SelectionContext) -> Sample:
        ranked = sorted(drafts, key=reward_of)
        middle = reward_of(ranked[(len(ranked) - 1) // 2])
        return next(draft for draft in drafts if reward_of(draft) == middle)
