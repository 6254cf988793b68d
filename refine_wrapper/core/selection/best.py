from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refine_wrapper.core.selection.interface import SelectionContext, reward_of
from refine_wrapper.core.types import Sample


@dataclass(frozen=True, slots=True)
class Best:
    """The draft with the highest reward (the paper's rule). Ties: the lowest draft index."""

    def select(self, drafts: Sequence[Sample], context: SelectionContext) -> Sample:
        return max(drafts, key=reward_of)  # max returns the first of equals
