from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refine_wrapper.core.selection.draw import draw
from refine_wrapper.core.selection.interface import SelectionContext, reward_of
from refine_wrapper.core.types import Sample


@dataclass(frozen=True, slots=True)
class WrongFirst:
    """A wrong draft (below ``max_reward``) with equal chance for each, else any: as ThinkTwice shows them."""

    def select(self, drafts: Sequence[Sample], context: SelectionContext) -> Sample:
        wrong = [draft for draft in drafts if reward_of(draft) < context.max_reward]
        among = wrong or list(drafts)
        return among[int(draw(context.seed, context.group_id, "selector") * len(among))]
