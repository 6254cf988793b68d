"""What the host samples beside its batch leaves no trace in it: metrics and pending logs are as before afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

_MISSING = object()
_TOOL_DICTS = ("_sync_tool_dicts", "_async_tool_dicts")


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Generator[None]:
    """An attribute of one object, for a while; a method of its class is seen again afterwards."""
    own = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextmanager
def set_apart(trainer: Any, num_rows: int, **changed: Any) -> Generator[dict[str, list[float]]]:
    """Have the host work on other rows than those of its batch; yields the metrics that it logs meanwhile.

    Args:
        trainer: The host.
        num_rows: Rows of this rank that it works on.
        changed: Further attributes of the trainer, for as long.
    """
    mode = "train" if trainer.model.training else "eval"
    changed = {"_pending_extra_logs": defaultdict(list), "_pending_metrics": defaultdict(list), **changed}
    for name in _TOOL_DICTS:
        if getattr(trainer, name, None):
            # One dict per row; without environments (refused at start) all rows have the same tools.
            changed[name] = [getattr(trainer, name)[0]] * num_rows
    kept = {name: getattr(trainer, name) for name in changed}
    kept_metrics = trainer._metrics[mode]
    trainer._metrics[mode] = apart = defaultdict[str, list[float]](list)
    for name, value in changed.items():
        setattr(trainer, name, value)
    try:
        yield apart
    finally:
        trainer._metrics[mode] = kept_metrics
        for name, value in kept.items():
            setattr(trainer, name, value)
