"""Weighted sums: arithmetic, what does not apply, and who is named when a part is wrong."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine_wrapper.errors import ConfigError, PluginError
from refine_wrapper.rewards.format import FormatReward
from refine_wrapper.rewards.weighted import WeightedSum, weighted


class Fixed:
    """Returns what it was given."""

    def __init__(self, returned: Any, name: str = "fixed") -> None:
        self.returned, self.__name__ = returned, name

    def __call__(self, **arguments: Any) -> Any:
        return self.returned


values = st.none() | st.floats(-1e6, 1e6)
weights = st.floats(-1e3, 1e3)


@given(st.data())
def test_is_the_sum_over_the_parts_that_apply(data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 4))
    table = data.draw(
        st.lists(st.tuples(st.lists(values, min_size=rows, max_size=rows), weights), min_size=1, max_size=4)
    )
    sums = WeightedSum([(Fixed(column), weight) for column, weight in table])(prompts=[], completions=[""] * rows)
    for row in range(rows):
        applying = [(column[row], weight) for column, weight in table if column[row] is not None]
        expected = sum(weight * value for value, weight in applying) if applying else None
        assert sums[row] == pytest.approx(expected)


@given(st.data(), st.integers(0, 4), st.integers(0, 4))
def test_a_wrong_length_names_the_reward(data: st.DataObject, returned: int, rows: int) -> None:
    reward = WeightedSum({Fixed([0.0] * rows, "good"): 1.0, Fixed([1.0] * returned, "bad"): 1.0})
    if returned == rows:
        assert reward(completions=[""] * rows) == [1.0] * rows
    else:
        with pytest.raises(PluginError, match=rf"reward 'bad' returned {returned} values for {rows} completions"):
            reward(completions=[""] * rows)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "must return a list of numbers, not NoneType"),
        (1.0, "must return a list of numbers, not float"),
        (["good"], "returned 'good', which is no number"),
        ([[1, 2]], r"returned \[1, 2\], which is no number"),
    ],
)
def test_no_numbers_name_the_reward(returned: Any, message: str) -> None:
    with pytest.raises(PluginError, match=f"reward 'bad' {message}"):
        WeightedSum({Fixed(returned, "bad"): 1.0})(completions=[""])


def test_nan_is_not_swallowed() -> None:
    (total,) = WeightedSum([(Fixed([math.nan]), 1.0), (Fixed([1.0]), 1.0)])(completions=[""])
    assert total is not None
    assert math.isnan(total)


def test_scalars_of_any_kind_count() -> None:
    assert WeightedSum([(Fixed([True, [2], 3]), 2)])(completions=["", "", ""]) == [2.0, 4.0, 6.0]


def test_every_part_gets_all_arguments_once() -> None:
    calls: list[dict[str, Any]] = []

    def part(**arguments: Any) -> list[float | None]:
        calls.append(arguments)
        return [1.0]

    WeightedSum([(part, 1.0)])(prompts=["q"], completions=["c"], answer=["4"], trainer_state=None)
    assert calls == [{"prompts": ["q"], "completions": ["c"], "answer": ["4"], "trainer_state": None}]


def test_name_says_what_is_summed() -> None:
    assert WeightedSum([(Fixed([], "math"), 1.0), (Fixed([], "format"), 0.2)]).__name__ == "math+0.2*format"
    assert WeightedSum([(Fixed([], "math"), 1.0)], name="score").__name__ == "score"


def test_names_are_looked_up_among_the_plugins() -> None:
    def mine(**arguments: Any) -> list[float | None]:
        return [0.5]

    reward = weighted(("format", 1.0), (mine, 2.0))
    assert reward.__name__ == "format+2*mine"
    assert reward(prompts=["q"], completions=[r"\boxed{1}"]) == [2.0]
    with pytest.raises(PluginError, match=r"unknown reward 'fromat'\. Did you mean 'format'\?"):
        weighted(("fromat", 1.0))


@pytest.mark.parametrize("weight", [math.nan, math.inf, "1", None, [1, 2]])
def test_weights_are_finite_numbers(weight: Any) -> None:
    with pytest.raises(ConfigError, match="weight of reward 'fixed' must be a finite number"):
        WeightedSum([(Fixed([]), weight)])


def test_parts_are_synchronous_functions() -> None:
    async def slow(**arguments: Any) -> list[float | None]:
        return []

    class Slow:
        async def __call__(self, **arguments: Any) -> list[float | None]:
            return []

    with pytest.raises(ConfigError, match="'slow' is asynchronous"):
        WeightedSum({slow: 1.0})  # pyright: ignore
    with pytest.raises(ConfigError, match="'Slow' is asynchronous"):
        WeightedSum({Slow(): 1.0})  # pyright: ignore
    with pytest.raises(ConfigError, match="use weighted"):
        WeightedSum([("math", 1.0)])  # pyright: ignore
    with pytest.raises(ConfigError, match="at least one reward"):
        WeightedSum([])


def test_pickles() -> None:
    copy = pickle.loads(pickle.dumps(WeightedSum([(FormatReward(), 0.5)])))
    assert copy.__name__ == "0.5*format"
    assert copy(prompts=["q"], completions=[r"\boxed{1}"]) == [0.5]
