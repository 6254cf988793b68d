"""Figures against brute force, definitions and known closed forms."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from refine_wrapper.study.evaluation.statistics import (
    mean_over_problems,
    of_share,
    pass_at,
    powers_of_two,
    ratio_over_problems,
    wilson,
)


@given(st.integers(1, 9), st.data())
def test_pass_at_is_the_share_of_subsets_with_a_right_one(n: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    samples = [True] * right + [False] * (n - right)
    assert pass_at(n, right, k) == pytest.approx(fmean(any(chosen) for chosen in combinations(samples, k)))


@given(st.integers(1, 12), st.floats(0, 1), st.data())
def test_pass_at_is_unbiased(n: int, p: float, data: st.DataObject) -> None:
    """Its mean over a binomial number of right samples is 1 - (1 - p)^k, exactly (Chen et al. 2021)."""
    k = data.draw(st.integers(1, n))
    mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at(n, c, k) for c in range(n + 1))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@given(st.integers(1, 300), st.data())
def test_pass_at_grows_with_k_and_starts_at_the_mean(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    assert pass_at(n, right, 1) == pytest.approx(right / n)
    values = [pass_at(n, right, k) for k in range(1, n + 1)]
    assert values == sorted(values)
    assert values[-1] == (1.0 if right else 0.0)


@pytest.mark.parametrize(("n", "right", "k"), [(4, 2, 5), (4, 5, 1), (4, -1, 1), (4, 2, 0)])
def test_pass_at_of_impossible_counts(n: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="is not defined"):
        pass_at(n, right, k)


def test_which_k_are_reported() -> None:
    assert powers_of_two(1) == [1]
    assert powers_of_two(8) == [1, 2, 4, 8]
    assert powers_of_two(6) == [1, 2, 4, 6]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20))
def test_the_error_of_a_mean_is_over_problems(values: list[float]) -> None:
    found = mean_over_problems(values)
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert found.value == pytest.approx(mean, abs=1e-9)
    assert found.standard_error == pytest.approx(math.sqrt(variance / len(values)), abs=1e-7)
    assert found.num_problems == len(values)


def test_repeating_the_samples_of_a_problem_does_not_shrink_its_error() -> None:
    """What clustering is for: 100 equal samples of two problems are two observations."""
    few = [fmean([1.0, 0.0]), fmean([1.0, 1.0])]
    many = [fmean([1.0, 0.0] * 50), fmean([1.0, 1.0] * 50)]
    assert mean_over_problems(few) == mean_over_problems(many)


@given(st.lists(st.tuples(st.integers(0, 4), st.just(4)), min_size=2, max_size=20))
def test_a_ratio_with_equal_wholes_is_a_mean(pairs: list[tuple[int, int]]) -> None:
    ratio = ratio_over_problems([part for part, _ in pairs], [whole for _, whole in pairs])
    mean = mean_over_problems([part / whole for part, whole in pairs])
    assert ratio.value == pytest.approx(mean.value)
    assert ratio.standard_error == pytest.approx(mean.standard_error)


def test_a_ratio_by_hand() -> None:
    # 3 of 5; residuals 1 - 0.6, 2 - 2.4, 0: sqrt((0.16 + 0.16) * 2 / 1) / 5 over the two problems with a whole.
    found = ratio_over_problems([1, 2, 0], [1, 4, 0])
    assert found.value == pytest.approx(0.6)
    assert found.standard_error == pytest.approx(math.sqrt(0.32 * 2) / 5)
    assert found.num_problems == 2


@pytest.mark.parametrize(("right", "count"), [(0, 20), (20, 20), (0, 3), (1, 10), (250, 500)])
def test_wilsons_interval_is_that_of_scipy(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_no_problem_solved_is_no_certainty() -> None:
    none = of_share(mean_over_problems([0.0] * 20))
    assert (none.value, none.standard_error) == (0.0, 0.0)
    assert str(none) == "0.000 [0.000, 0.161]"
    some = mean_over_problems([0.0, 1.0, 0.0, 1.0])
    assert of_share(some) == some
    assert str(some) == "0.500 ± 0.289"
    assert str(of_share(mean_over_problems([0.0]))) == "0.000"


def test_nothing_to_average_is_none_and_one_problem_has_no_error() -> None:
    for empty in (mean_over_problems([]), ratio_over_problems([0], [0])):
        assert (empty.value, empty.standard_error, empty.num_problems) == (None, None, 0)
    for one in (mean_over_problems([0.5]), ratio_over_problems([1], [2])):
        assert (one.value, one.standard_error, one.num_problems) == (0.5, None, 1)
