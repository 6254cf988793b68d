from __future__ import annotations

from dataclasses import dataclass

from refine_wrapper.core.modes.interface import GroupSoFar, Mode, Rules
from refine_wrapper.core.types import Cause, End, Round, TrainUnder, Use


@dataclass(frozen=True)
class Rescue(Mode):
    """All slots on q; if all are wrong, R more samples that show one, and each right one takes a wrong one's slot.

    R is ``num_drafts``. Samples that take a slot are trained as answers to q. One wrong sample stays, so that the
    group has an advantage. ``fresh`` samples the R on q: the control.
    """

    num_drafts: int = 4
    fresh: bool = False

    def next(self, group: GroupSoFar) -> Round | End:
        if not group.rounds:
            return Round(group.num_slots, Use.FILL)
        if len(group.rounds) == 1:
            return self._rescue(group)
        right = [sample.index for sample in group.of_round(1) if group.is_right(sample)]
        takes = dict(zip(group.slots[1:], right, strict=False))
        reason = f"{len(right)} of {self.num_drafts} more samples are right"
        return End(takes, TrainUnder.QUESTION, None if takes else Cause.MODE, reason)

    def _rescue(self, group: GroupSoFar) -> Round | End:
        if not group.all_wrong:
            return End(cause=Cause.MODE, reason="a sample is right already")
        why = "all samples are wrong"
        if self.fresh:
            return Round(self.num_drafts, Use.TAKE, train_under=TrainUnder.QUESTION, reason=why, arm="fresh")
        if group.refused or not group.candidates:
            # All slots are filled by now: the group is the plain run's, whatever on_no_draft says of others.
            cause = next(iter(group.refused.values()), Cause.NO_USABLE_DRAFT)
            return End(cause=cause, reason=cause.value)
        shown = group.select().index
        return Round(self.num_drafts, Use.TAKE, shown, TrainUnder.QUESTION, reason=why, arm="refined")

    def may_take(self, rules: Rules) -> bool:
        return True

    def num_context(self, num_slots: int, rules: Rules) -> int:
        return self.num_drafts

    def trains_under(self, rules: Rules) -> TrainUnder:
        return TrainUnder.QUESTION
