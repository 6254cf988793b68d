from __future__ import annotations

from dataclasses import dataclass

from refine_wrapper.core.modes.interface import GroupSoFar, Mode, Rules, check_split
from refine_wrapper.core.types import End, Round, TrainUnder, Use


@dataclass(frozen=True)
class Joint(Mode):
    """N slots on q, the others on q' that shows the selected one; all are one group (as in Critique-GRPO)."""

    num_drafts: int = 4
    train_under: TrainUnder = TrainUnder.SAMPLED

    def next(self, group: GroupSoFar) -> Round | End:
        if not group.rounds:
            return Round(self.num_drafts, Use.FILL)
        return group.show_selected(group.slots_left, train_under=self.train_under)

    def check(self, num_slots: int, rules: Rules) -> None:
        check_split("joint", self.num_drafts, num_slots)

    def trains_under(self, rules: Rules) -> TrainUnder:
        return self.train_under
