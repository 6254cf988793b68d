from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refine_wrapper.core.modes.interface import GroupSoFar, Mode, Rules
from refine_wrapper.core.types import Cause, End, Round, TrainUnder


@dataclass(frozen=True)
class Alternate(Mode):
    """Groups of even steps are plain, those of odd steps follow the mode ``inner`` (ThinkTwice, arXiv 2604.01591)."""

    inner: str = "joint"
    inner_options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def next(self, group: GroupSoFar) -> Round | End:
        if group.progress.step % 2 == 0:
            return group.plain("an even step", Cause.NOT_CHOSEN)
        return self._inner(group.rules).next(group)

    def check(self, num_slots: int, rules: Rules) -> None:
        self._inner(rules).check(num_slots, rules)

    def may_take(self, rules: Rules) -> bool:
        return self._inner(rules).may_take(rules)

    def num_context(self, num_slots: int, rules: Rules) -> int:
        return self._inner(rules).num_context(num_slots, rules)

    def trains_under(self, rules: Rules) -> TrainUnder:
        return self._inner(rules).trains_under(rules)

    def _inner(self, rules: Rules) -> Mode:
        return rules.build_mode(self.inner, self.inner_options)
