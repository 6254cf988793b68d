from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

from refine_wrapper.core.modes.interface import GroupSoFar, Mode, Rules, Tally, check_split
from refine_wrapper.core.types import Cause, End, Round, TrainUnder, Use

_FRESH, _REFINED = "fresh", "refined"


@dataclass(frozen=True)
class Adaptive(Mode):
    """As on_failure, but all-wrong groups get the rest fresh or as refinements, whichever solved more of them lately.

    A seeded bandit (UCB1) over recent steps; ``explore`` is the share of groups that get either by chance.
    """

    num_drafts: int = 4
    train_under: TrainUnder = TrainUnder.QUESTION_IF_RIGHT
    explore: float = 0.1

    def next(self, group: GroupSoFar) -> Round | End:
        if not group.rounds:
            return Round(self.num_drafts, Use.FILL)
        if not group.all_wrong:
            return group.plain("a sample is right already")
        if group.refused or not group.candidates:
            return group.without_refinement()
        if self._choose(group) == _FRESH:
            why = "fresh samples solved more all-wrong groups lately"
            return Round(group.slots_left, Use.FILL, final=True, cause=Cause.MODE, reason=why, arm=_FRESH)
        why = "refinements solved more all-wrong groups lately"
        return group.show_selected(group.slots_left, train_under=self.train_under, reason=why, arm=_REFINED)

    def check(self, num_slots: int, rules: Rules) -> None:
        check_split("adaptive", self.num_drafts, num_slots)

    def trains_under(self, rules: Rules) -> TrainUnder:
        return self.train_under

    def _choose(self, group: GroupSoFar) -> str:
        if group.draw("adaptive/explore") < self.explore:
            return _FRESH if group.draw("adaptive/arm") < 0.5 else _REFINED
        fresh, refined = (group.lately.get(arm, Tally()) for arm in (_FRESH, _REFINED))
        total = fresh.tried + refined.tried
        if _bound(refined, total) == _bound(fresh, total):
            return _FRESH if group.draw("adaptive/arm") < 0.5 else _REFINED
        return _REFINED if _bound(refined, total) > _bound(fresh, total) else _FRESH


def _bound(tally: Tally, total: int) -> float:
    """The upper confidence bound of a choice's rate of solved groups; an untried one comes first."""
    if not tally.tried:
        return float("inf")
    return tally.solved / tally.tried + sqrt(log(max(2, total)) / (2 * tally.tried))
