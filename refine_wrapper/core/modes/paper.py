from __future__ import annotations

from dataclasses import dataclass

from refine_wrapper.core.modes.interface import GroupSoFar, Mode, Rules
from refine_wrapper.core.types import End, Round, Use


@dataclass(frozen=True)
class Paper(Mode):
    """N drafts on q as context only, then all slots on q' that shows the selected one (iGRPO, arXiv 2602.09000)."""

    num_drafts: int = 4

    def next(self, group: GroupSoFar) -> Round | End:
        if not group.rounds:
            return Round(self.num_drafts, Use.CONTEXT)
        return group.show_selected(group.slots_left)

    def num_context(self, num_slots: int, rules: Rules) -> int:
        return self.num_drafts

    def context_first(self, rules: Rules) -> bool:
        return True
