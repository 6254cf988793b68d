"""One float from whatever a reward function returned."""

from __future__ import annotations

from typing import Any


def scalar(reward: Any) -> float | None:
    """One float from a number, a 0-d array or tensor, or a list of exactly one of these; else None."""
    while isinstance(reward, (list, tuple)) or getattr(reward, "shape", ()) not in ((), None):
        items: list[Any] = list(reward)  # pyright: ignore[reportUnknownArgumentType]
        if len(items) != 1:
            return None
        reward = items[0]
    if isinstance(reward, (str, bytes, bytearray)):  # float() would read these
        return None
    try:
        return float(reward)
    except (TypeError, ValueError, OverflowError):
        return None
