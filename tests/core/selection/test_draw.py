"""Random numbers that every rank, every order of arrival and every Python version agree on."""

from __future__ import annotations

from statistics import fmean

from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.core.selection.draw import draw

LOCKED = [0.18413771760861053, 0.08227203550902829, 0.49929165368828166]


@given(st.integers(), st.text(), st.text())
def test_a_number_from_zero_to_below_one(seed: int, group_id: str, purpose: str) -> None:
    assert 0.0 <= draw(seed, group_id, purpose) < 1.0


def test_the_same_for_ever() -> None:
    # Literal values: a different hash, byte order or separator would silently change every seeded run.
    assert [draw(0, "g", "selector"), draw(1, "g", "selector"), draw(0, "g", "refine_share")] == LOCKED


def test_purposes_are_independent() -> None:
    pairs = [(draw(0, f"g{i}", "selector"), draw(0, f"g{i}", "refine_share")) for i in range(2000)]
    a, b = fmean(x for x, _ in pairs), fmean(y for _, y in pairs)
    covariance = fmean((x - a) * (y - b) for x, y in pairs)
    assert abs(a - 0.5) < 0.03
    assert abs(b - 0.5) < 0.03
    assert abs(covariance) < 0.01  # variance of one is 1/12
