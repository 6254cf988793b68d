"""One float from whatever a reward function returned."""

from __future__ import annotations

from typing import Any


def scalar(reward: Any) -> float | None:
    """One float from a number, a 0-d array or tensor, or a list of exactly one of these; None for anything else."""
    if isinstance(reward, (str, bytes)):
        return None
    while isinstance(reward, (list, tuple)) or getattr(reward, "shape", ()) not in ((), None):
        items: list[Any] = list(reward)  # pyright: ignore[reportUnknownArgumentType]
        if len(items) != 1:
            return None
        reward = items[0]
    try:
        return float(reward)
    except (TypeError, ValueError):
        return None
