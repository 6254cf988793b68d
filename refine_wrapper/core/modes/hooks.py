"""The built-in modes, and how a mode is made from its name and options."""

from __future__ import annotations

from collections.abc import Mapping

from refine_wrapper.core.modes.adaptive import Adaptive
from refine_wrapper.core.modes.alternate import Alternate
from refine_wrapper.core.modes.interface import Mode
from refine_wrapper.core.modes.joint import Joint
from refine_wrapper.core.modes.on_failure import OnFailure
from refine_wrapper.core.modes.paper import Paper
from refine_wrapper.core.modes.rescue import Rescue
from refine_wrapper.core.modes.rounds import Rounds
from refine_wrapper.plugins.hookspecs import hookimpl


@hookimpl
def register_modes() -> Mapping[str, type[Mode]]:
    return {
        "paper": Paper,
        "joint": Joint,
        "on_failure": OnFailure,
        "rescue": Rescue,
        "adaptive": Adaptive,
        "alternate": Alternate,
        "rounds": Rounds,
    }
