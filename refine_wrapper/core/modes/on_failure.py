from __future__ import annotations

from dataclasses import dataclass

from refine_wrapper.core.modes.interface import GroupSoFar, Mode, Rules, check_split
from refine_wrapper.core.types import End, Round, TrainUnder, Use


@dataclass(frozen=True)
class OnFailure(Mode):
    """N slots on q; if all are wrong the others are refinements that show one of them, else they are on q too.

    A right refinement is trained as an answer to q by default, a wrong one under q'.
    """

    num_drafts: int = 4
    train_under: TrainUnder = TrainUnder.QUESTION_IF_RIGHT

    def next(self, group: GroupSoFar) -> Round | End:
        if not group.rounds:
            return Round(self.num_drafts, Use.FILL)
        if not group.all_wrong:
            return group.plain("a sample is right already")
        return group.show_selected(group.slots_left, train_under=self.train_under, reason="all samples are wrong")

    def check(self, num_slots: int, rules: Rules) -> None:
        check_split("on_failure", self.num_drafts, num_slots)

    def trains_under(self, rules: Rules) -> TrainUnder:
        return self.train_under
