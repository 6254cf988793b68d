from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refine_wrapper.core.selection.draw import draw
from refine_wrapper.core.selection.interface import SelectionContext
from refine_wrapper.core.types import Sample


@dataclass(frozen=True, slots=True)
class RandomChoice:
    """Any usable draft with equal chance, drawn from the seed and the group id; rewards do not matter."""

    def select(self, drafts: Sequence[Sample], context: SelectionContext) -> Sample:
        return drafts[int(draw(context.seed, context.group_id, "selector") * len(drafts))]
