"""Finding the right answer of every row among the data set's columns."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.rewards.answers import extract_answer

COLUMNS: Final = ("answer", "solution", "ground_truth")
"""Where the right answer is looked for, in this order, unless a column is named."""

# What TRL passes to every reward function beside the columns.
_NOT_COLUMNS: Final = frozenset(("completion_ids", "trainer_state", "log_extra", "log_metric", "environments"))


def right_answers(columns: Mapping[str, Any], named: str | None, expected: int, reward: str) -> list[str | None]:
    r"""The right answer of every row, taken out of ``\boxed{}`` and the like; None where the row has none.

    Raises:
        ConfigError: If there is no such column, it has not one value per completion, or a value is no answer.
    """
    column = _column(columns, named, reward)
    values: Any = columns[column]
    # A list, or an array: some hosts keep their batches in NumPy.
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__") or len(values) != expected:
        raise ConfigError(
            f"refine: reward {reward!r}: column {column!r} must have one value per completion ({expected}), "
            f"not {values!r:.80}"
        )
    return [_answer(value, column, reward) for value in values]


def _column(columns: Mapping[str, Any], named: str | None, reward: str) -> str:
    wanted = COLUMNS if named is None else (named,)
    for column in wanted:
        if column in columns:
            return column
    present = sorted(set(columns) - _NOT_COLUMNS)
    help_ = (
        f"Name the column with the right answers: MathReward(answer_column={present[0]!r})."
        if named is None and present
        else did_you_mean(named or COLUMNS[0], present)
    )
    raise ConfigError(
        f"refine: reward {reward!r} finds no column {' or '.join(map(repr, wanted))}. "
        f"Columns present: {', '.join(present) or 'none'}. {help_}"
    )


def _answer(value: Any, column: str, reward: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return extract_answer(value) or None
    if isinstance(value, bool):  # an int to Python; as an answer it is a column of another meaning
        value = repr(value)
    elif isinstance(value, numbers.Integral):
        return str(int(value))
    elif isinstance(value, (numbers.Real, Decimal)):
        number = float(value)
        # pandas has NaN where a row has no value. No exponent: LaTeX would read it as Euler's number.
        return f"{Decimal(repr(number)):f}" if math.isfinite(number) else None
    raise ConfigError(
        f"refine: reward {reward!r}: column {column!r} must hold text or numbers, "
        f"not {type(value).__name__}: {value!r:.80}"
    )
