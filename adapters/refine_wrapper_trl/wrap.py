"""refine(): two-stage refinement for a trainer class of your own, or for a trainer that already exists."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from trl import GRPOTrainer, RLOOTrainer

from refine_wrapper.errors import ConfigError
from refine_wrapper_trl.mixin import RefineMixin, Seam

T = TypeVar("T")


def refine(target: T, **settings: Any) -> T:
    """A subclass of a trainer class that refines, or the same live trainer with refinement switched on.

    Args:
        target: ``GRPOTrainer``, ``RLOOTrainer``, a subclass of one of them, or an instance.
        settings: Names of :class:`refine_wrapper.RefineConfig`, for example ``num_drafts=4``. They go before what the
            trainer's config states, and after flags (docs/configuration.md). ``match_budget`` and ``objective`` cannot
            be given here: the config has laid out its batches and its loss by now.

    Raises:
        ConfigError: If the target is no such trainer, or a setting is wrong.
    """
    if isinstance(target, type):
        _check(target)
        # On a class that refines already, what is not said again stays; being off does not, for refine() means on.
        kept = {name: value for name, value in getattr(target, "refine_settings", {}).items() if name != "enabled"}
        members = {"refine_settings": {**kept, **settings}, "__module__": target.__module__, "__doc__": target.__doc__}
        bases = (target,) if issubclass(target, Seam) else (RefineMixin, target)
        return cast("T", type(f"Refine{target.__name__}", bases, members))
    _check(type(target))
    trainer: Any = target
    trainer.__class__ = refine(type(target), **settings)
    trainer._refine_start()
    return target


def _check(kind: type) -> None:
    if not issubclass(kind, (GRPOTrainer, RLOOTrainer)):
        raise ConfigError(
            f"refine: {kind.__name__} is neither a GRPOTrainer nor an RLOOTrainer (nor a subclass). Give refine() "
            f"one of these."
        )
