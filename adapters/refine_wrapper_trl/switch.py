"""Called by the launch hook of ``refine-wrapper run`` right after a TRL module was executed: swaps its classes.

The swapped classes keep the host's ``__name__``, ``__qualname__`` and ``__module__``, so that pickling, telemetry
and checkpoints see no difference, and every later ``from trl import GRPOTrainer`` gets them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from refine_wrapper.errors import SeamError


def switch_config(module: ModuleType) -> None:
    """Swap ``GRPOConfig`` or ``RLOOConfig`` for one with the ``refine_*`` fields."""
    from refine_wrapper_trl.fields import RefineSettings

    base = _class_of(module, "Config")
    setattr(module, base.__name__, dataclass(_like(base, (RefineSettings, base))))


def switch_trainer(module: ModuleType) -> None:
    """Swap ``GRPOTrainer`` or ``RLOOTrainer`` for one that refines."""
    from refine_wrapper_trl.mixin import Seam

    base = _class_of(module, "Trainer")

    @functools.wraps(base.__init__)  # for who asks for the parameters: those of the host's class, not (*args, **kwargs)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        Seam.__init__(self, *args, **kwargs)

    setattr(module, base.__name__, _like(base, (Seam, base), __init__=__init__))


def _class_of(module: ModuleType, suffix: str) -> type:
    """``trl.trainer.grpo_trainer`` has ``GRPOTrainer``."""
    name = module.__name__.rpartition(".")[2].partition("_")[0].upper() + suffix
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise SeamError(
            f"refine: {module.__name__} has no class {name}. Run `refine-wrapper doctor`; supported is TRL 1.0 to 1.16."
        )
    return found


def _like(base: type, bases: tuple[type, ...], **members: Any) -> type:
    swapped = type(base.__name__, bases, {"__module__": base.__module__, "__doc__": base.__doc__, **members})
    swapped.__qualname__ = base.__qualname__
    return swapped
