"""What can be said beside a mode, as modes around it: which share of groups is refined, questions that are too long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refine_wrapper.core.modes.interface import GroupSoFar, Mode
from refine_wrapper.core.types import Cause, End, Question, Round


@dataclass(frozen=True)
class Share(Mode):
    """A share of groups follows the mode inside, the others are plain (``refine_share``)."""

    inside: Mode
    share: float

    def next(self, group: GroupSoFar) -> Round | End:
        if not group.rounds and (self.share <= 0 or group.draw("refine_share") >= self.share):
            return group.plain("outside refine_share", Cause.NOT_CHOSEN)
        return self.inside.next(group)


@dataclass(frozen=True)
class FittingQuestions(Mode):
    """Questions that leave no room to answer stay with the host, whatever ``on_no_draft`` says."""

    inside: Mode
    fits: Callable[[Question], bool]

    def next(self, group: GroupSoFar) -> Round | End:
        if not group.rounds and not self.fits(group.question):
            return group.plain("the question is too long", Cause.QUESTION_TOO_LONG)
        return self.inside.next(group)
