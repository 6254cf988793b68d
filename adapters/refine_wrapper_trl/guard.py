"""Reward functions whose failure costs samples, not the run, in rounds that something is decided on."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch

from refine_wrapper.core.types import Outcome
from refine_wrapper.rewards.scalar import scalar

NOT_A_NUMBER = (Outcome.NON_FINITE, "nan")
"""Noted for a row with a NaN. The host reads NaN as None: the row failed only if no other function paid it."""


class Guard:
    """Guards the reward functions of one trainer.

    A failure on one rank must not end the round there: ranks meet after scoring, and the others would wait for ever.

    Args:
        timeout: Seconds that one call of an asynchronous reward function may take.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout

    def guarded(self, functions: list[Any], failures: dict[int, tuple[Outcome, str]]) -> list[Any]:
        """The functions, guarded. Reward models (``nn.Module``) are the host's own code path and stay as they are.

        Args:
            functions: The host's ``reward_funcs``.
            failures: Filled in: row of the call -> how it failed, and the detail.
        """
        return [f if isinstance(f, torch.nn.Module) else self._guarded(f, failures) for f in functions]

    def _guarded(self, function: Any, failures: dict[int, tuple[Outcome, str]]) -> Any:
        def failed(kwargs: dict[str, Any], outcome: Outcome, detail: str) -> list[float | None]:
            failures.update(dict.fromkeys(range(len(kwargs["completions"])), (outcome, detail)))
            return [None] * len(kwargs["completions"])

        def checked(kwargs: dict[str, Any], returned: Any) -> list[float | None]:
            num_rows = len(kwargs["completions"])
            try:
                values = list(returned)
            except TypeError:
                values = None
            if values is None or len(values) != num_rows:
                what = f"{len(values)} rewards" if values is not None else type(returned).__name__
                return failed(kwargs, Outcome.WRONG_LENGTH, f"returned {what} for {num_rows} completions")
            rewards: list[float | None] = []
            for row, value in enumerate(values):
                reward = None if value is None else scalar(value)
                if value is not None and reward is None:
                    failures[row] = (Outcome.WRONG_LENGTH, f"not one number: {value!r:.200}")
                elif reward is not None and math.isinf(reward):
                    failures[row] = (Outcome.NON_FINITE, str(reward))
                elif reward is not None and math.isnan(reward):
                    failures.setdefault(row, NOT_A_NUMBER)
                rewards.append(reward)
            return rewards

        if _is_async(function):

            async def guarded_async(**kwargs: Any) -> list[float | None]:
                try:
                    returned = await asyncio.wait_for(function(**kwargs), self._timeout)
                except (asyncio.TimeoutError, TimeoutError):
                    why = f"took longer than draft_timeout={self._timeout} s"
                    return failed(kwargs, Outcome.TIMEOUT, f"reward {why}")
                except Exception as error:
                    return failed(kwargs, Outcome.REWARD_EXCEPTION, _described(error))
                return checked(kwargs, returned)

            return _named(guarded_async, function)

        def guarded(**kwargs: Any) -> list[float | None]:
            try:
                returned = function(**kwargs)
            except Exception as error:
                return failed(kwargs, Outcome.REWARD_EXCEPTION, _described(error))
            return checked(kwargs, returned)

        return _named(guarded, function)


def _described(error: Exception) -> str:
    """The exception, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _is_async(function: Any) -> bool:
    """As the host decides (its ``is_async_callable``): functions, objects with ``__call__``, and partials of both."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _named(guard: Callable[..., Any], function: Any) -> Callable[..., Any]:
    """Carry the name over, for profiling; not ``__wrapped__``, through which the host would see another signature."""
    wrapped = functools.update_wrapper(guard, function, updated=())
    del wrapped.__wrapped__
    return wrapped
