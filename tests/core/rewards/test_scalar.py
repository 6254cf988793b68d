"""One float from whatever a reward function returned."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.rewards.scalar import scalar


class Array:
    """What NumPy and torch have in common, as far as it matters here."""

    def __init__(self, values: Any, shape: tuple[int, ...]) -> None:
        self.values, self.shape = values, shape

    def __iter__(self) -> Any:
        return iter(self.values)

    def __float__(self) -> float:
        return float(self.values)


@pytest.mark.parametrize(
    ("reward", "value"),
    [
        (1, 1.0),
        (True, 1.0),
        (Fraction(1, 4), 0.25),
        (Decimal("0.5"), 0.5),
        ([2], 2.0),
        ((2,), 2.0),
        ([[2.5]], 2.5),
        (Array(3, ()), 3.0),
        (Array([3], (1,)), 3.0),
        ([Array([Array(3, ())], (1,))], 3.0),
        (Array([3, 4], (2,)), None),
        ([], None),
        ([1, 2], None),
        (None, None),
        ([None], None),
        ("1", None),
        (["1"], None),
        (b"1", None),
        (bytearray(b"1"), None),
        ({"score": 1}, None),
        (1j, None),
        (10**400, None),
        (object(), None),
    ],
)
def test_scalar(reward: Any, value: float | None) -> None:
    assert scalar(reward) == value


def test_not_finite_numbers_stay_what_they_are() -> None:
    # The core counts them; that there was no reward would be another outcome.
    assert scalar(math.inf) == math.inf
    assert math.isnan(scalar([math.nan]) or 0.0)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers()
    | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)


@given(anything)
def test_never_raises_and_returns_a_float_or_none(reward: Any) -> None:
    assert isinstance(scalar(reward), (float, type(None)))


@given(st.floats(allow_nan=False), st.integers(0, 20))
def test_nesting_does_not_change_a_number(number: float, depth: int) -> None:
    reward: Any = number
    for _ in range(depth):
        reward = [reward]
    assert scalar(reward) == number
