"""What the host samples beside its batch leaves no trace in it: metrics and pending logs are as before afterwards."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from refine_wrapper.core.types import DraftOutcome
from refine_wrapper.rewards.scalar import scalar

Failures = dict[int, tuple[DraftOutcome, str]]
"""Local draft row -> how scoring it failed, and the detail."""

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
def set_apart(trainer: Any, num_rows: int, **changed: Any) -> Generator[None]:
    """Have the host work on other rows than those of its batch, with a scratch place for what it logs meanwhile.

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
    trainer._metrics[mode] = defaultdict(list)
    for name, value in changed.items():
        setattr(trainer, name, value)
    try:
        yield
    finally:
        trainer._metrics[mode] = kept_metrics
        for name, value in kept.items():
            setattr(trainer, name, value)


@contextmanager
def stage1_isolated(
    trainer: Any, group_size_name: str, num_drafts: int, num_rows: int, timeout: float | None
) -> Generator[Failures]:
    """Have the host work with N rows a group, guarded reward functions, and a scratch place for what it logs."""
    failures: Failures = {}
    guarded = [_guarded(function, failures, timeout) for function in trainer.reward_funcs]
    with set_apart(trainer, num_rows, **{group_size_name: num_drafts, "reward_funcs": guarded}):
        yield failures


def _guarded(function: Any, failures: Failures, timeout: float | None) -> Any:
    """A reward function whose failure costs drafts, not the run (and not a deadlock: ranks meet after scoring).

    Reward models (``nn.Module``) are the host's own code path and stay as they are.
    """
    if isinstance(function, torch.nn.Module):
        return function
    if _is_async(function):

        async def guarded_async(**kwargs: Any) -> list[float | None]:
            try:
                returned = await asyncio.wait_for(function(**kwargs), timeout)
            except (asyncio.TimeoutError, TimeoutError):
                return _all_failed(
                    failures, kwargs, DraftOutcome.TIMEOUT, f"reward took longer than draft_timeout={timeout} s"
                )
            except Exception as error:
                return _all_failed(failures, kwargs, DraftOutcome.REWARD_EXCEPTION, f"{type(error).__name__}: {error}")
            return _checked(failures, kwargs, returned)

        return _named(guarded_async, function)

    def guarded(**kwargs: Any) -> list[float | None]:
        try:
            returned = function(**kwargs)
        except Exception as error:
            return _all_failed(failures, kwargs, DraftOutcome.REWARD_EXCEPTION, f"{type(error).__name__}: {error}")
        return _checked(failures, kwargs, returned)

    return _named(guarded, function)


def _is_async(function: Any) -> bool:
    """As the host decides (its ``is_async_callable``): functions, objects with ``__call__``, and partials of both."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _checked(failures: Failures, kwargs: dict[str, Any], returned: Any) -> list[float | None]:
    num_rows = len(kwargs["completions"])
    try:
        values = list(returned)
    except TypeError:
        values = None
    if values is None or len(values) != num_rows:
        what = f"{len(values)} rewards" if values is not None else type(returned).__name__
        return _all_failed(failures, kwargs, DraftOutcome.WRONG_LENGTH, f"returned {what} for {num_rows} completions")
    rewards: list[float | None] = []
    for row, value in enumerate(values):
        reward = None if value is None else scalar(value)
        if value is not None and reward is None:
            failures[row] = (DraftOutcome.WRONG_LENGTH, f"not one number: {value!r:.200}")
        elif reward is not None and not math.isfinite(reward):
            # The host would read NaN as None; a NaN is the reward's fault, None its right.
            failures[row] = (DraftOutcome.NON_FINITE, str(reward))
        rewards.append(reward)
    return rewards


def _all_failed(failures: Failures, kwargs: dict[str, Any], outcome: DraftOutcome, detail: str) -> list[float | None]:
    num_rows = len(kwargs["completions"])
    failures.update(dict.fromkeys(range(num_rows), (outcome, detail)))
    return [None] * num_rows


def _named(guard: Callable[..., Any], function: Any) -> Callable[..., Any]:
    """Carry the name over, for profiling; not ``__wrapped__``, through which the host would see another signature."""
    wrapped = functools.update_wrapper(guard, function, updated=())
    del wrapped.__wrapped__
    return wrapped
