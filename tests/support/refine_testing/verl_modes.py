"""A plugin with a mode that is another one each step, so that one start of a host serves many (``mode=by_step``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refine_wrapper.core.modes.interface import GroupSoFar, Mode, Rules
from refine_wrapper.core.types import End, Round, TrainUnder
from refine_wrapper.plugins.hookspecs import hookimpl


@dataclass(frozen=True)
class ByStep(Mode):
    """Step k follows the k-th of ``modes``, and begins again where there are no more."""

    modes: tuple[str, ...] = ("paper",)

    def next(self, group: GroupSoFar) -> Round | End:
        name = self.modes[(group.progress.step - 1) % len(self.modes)]
        return group.rules.build_mode(name, {}).next(group)

    def check(self, num_slots: int, rules: Rules) -> None:
        for mode in self._all(rules):
            mode.check(num_slots, rules)

    def num_context(self, num_slots: int, rules: Rules) -> int:
        return max(mode.num_context(num_slots, rules) for mode in self._all(rules))

    def may_take(self, rules: Rules) -> bool:
        return any(mode.may_take(rules) for mode in self._all(rules))

    def trains_under(self, rules: Rules) -> TrainUnder:
        unders = [mode.trains_under(rules) for mode in self._all(rules)]
        return next((under for under in unders if under is not TrainUnder.SAMPLED), TrainUnder.SAMPLED)

    def _all(self, rules: Rules) -> list[Mode]:
        return [rules.build_mode(name, {}) for name in self.modes]


@hookimpl
def register_modes() -> Mapping[str, type[Mode]]:
    return {"by_step": ByStep}
