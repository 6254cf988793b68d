"""Figures as the page writes them."""

from __future__ import annotations

from math import isnan
from typing import Final

NONE: Final = "\N{EN DASH}"
"""Stands where there is no figure."""


def number(value: float) -> str:
    """Three digits after the point, as far as they say anything."""
    if isnan(value):
        return NONE
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def with_interval(mean: float, low: float, high: float) -> str:
    """``0.661 [0.640, 0.682]``, or the mean alone where there is no interval."""
    return number(mean) if isnan(low) else f"{number(mean)} [{number(low)}, {number(high)}]"
