from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from refine_wrapper.core.modes.interface import GroupSoFar, Mode, Rules, check_split
from refine_wrapper.core.types import End, Round, TrainUnder, Use
from refine_wrapper.errors import ConfigError


@dataclass(frozen=True)
class Rounds(Mode):
    """``rounds`` rounds of refinements, each showing the best sample so far; over early where the best is right.

    ``inner`` is ``paper`` (all but the last round are context, ``num_drafts`` samples each) or ``joint`` (the first
    round fills ``num_drafts`` slots, the others share what is left).
    """

    rounds: int = 2
    num_drafts: int = 4
    inner: Literal["paper", "joint"] = "paper"
    train_under: TrainUnder = TrainUnder.SAMPLED

    def next(self, group: GroupSoFar) -> Round | End:
        use = Use.CONTEXT if self.inner == "paper" else Use.FILL
        if not group.rounds:
            return Round(self.num_drafts, use)
        refinements_left = self.rounds - (len(group.rounds) - 1)
        if refinements_left <= 1 or group.refused or not group.candidates or not group.all_wrong:
            return group.show_selected(group.slots_left, train_under=self.train_under)
        best = max(group.candidates, key=lambda sample: sample.reward or 0.0)
        size = self.num_drafts if self.inner == "paper" else group.slots_left // refinements_left
        return Round(size, use, best.index, self.train_under)

    def check(self, num_slots: int, rules: Rules) -> None:
        if self.rounds < 1:
            raise ConfigError(f"refine: mode_options rounds={self.rounds}: write 1 or more.")
        if self.inner == "joint":
            check_split("rounds", self.num_drafts, num_slots)
            if num_slots - self.num_drafts < self.rounds:
                raise ConfigError(
                    f"refine: mode 'rounds' shares {num_slots - self.num_drafts} slots among rounds={self.rounds}; "
                    f"set rounds to at most {num_slots - self.num_drafts}, or num_drafts to at most "
                    f"{num_slots - self.rounds}."
                )

    def num_context(self, num_slots: int, rules: Rules) -> int:
        return self.num_drafts * self.rounds if self.inner == "paper" else 0

    def context_first(self, rules: Rules) -> bool:
        return self.inner == "paper"

    def trains_under(self, rules: Rules) -> TrainUnder:
        return self.train_under
