"""One reward from several: the sum of weight times reward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from refine_wrapper.errors import ConfigError, PluginError
from refine_wrapper.messages import Message
from refine_wrapper.rewards.interface import Reward
from refine_wrapper.rewards.scalar import scalar


class WeightedSum:
    """The sum of weight times reward over several reward functions.

    A part that does not apply to a completion (None) is left out of its sum; where no part applies the sum is
    None. Where a part with ``none_is_failure`` (a judge) gives None the sum is None too: left out it would count as 0.
    NaN is a number here, and makes the sum NaN. The name says what is summed, as in
    ``math+0.2*format``.

    Args:
        parts: Rewards with their weights, as a mapping or as pairs.
        name: The name under which hosts log it, instead of the one above.

    Raises:
        ConfigError: If there is no part, a weight is no finite number, or a part is no synchronous function.
    """

    def __init__(
        self, parts: Mapping[Reward, float] | Iterable[tuple[Reward, float]], *, name: str | None = None
    ) -> None:
        pairs = cast("Iterable[tuple[Reward, float]]", parts.items() if isinstance(parts, Mapping) else parts)
        self._parts = tuple((reward, _checked_weight(reward, weight)) for reward, weight in pairs)
        if not self._parts:
            raise ConfigError("refine: a weighted sum needs at least one reward")
        self.__name__ = name or "+".join(
            _name(reward) if weight == 1 else f"{weight:g}*{_name(reward)}" for reward, weight in self._parts
        )

    def __call__(
        self, *, completions: Sequence[str | Sequence[Message]], prompts: Sequence[Any] = (), **columns: Any
    ) -> list[float | None]:
        """One sum per completion. Every part is called once, with everything that this was called with.

        Raises:
            PluginError: If a part does not return one number or None per completion; naming it.
        """
        sums: list[float | None] = [None] * len(completions)
        failed: set[int] = set()
        for reward, weight in self._parts:
            returned = reward(prompts=prompts, completions=completions, **columns)
            for index, value in enumerate(_checked_values(reward, returned, len(completions))):
                if value is None and getattr(reward, "none_is_failure", False):
                    failed.add(index)
                elif value is not None:
                    # Not `or 0.0`: -0.0 and NaN stay what they are.
                    before = sums[index]
                    sums[index] = weight * value if before is None else before + weight * value
        return [None if index in failed else value for index, value in enumerate(sums)]

    @property
    def needs_group(self) -> bool:
        """Whether a part compares the completions of a group, so that it cannot score them one by one."""
        return any(getattr(reward, "needs_group", False) for reward, _ in self._parts)

    def __repr__(self) -> str:
        return f"WeightedSum({', '.join(f'({_name(reward)}, {weight:g})' for reward, weight in self._parts)})"


def weighted(*parts: tuple[str | Reward, float], name: str | None = None) -> WeightedSum:
    """A weighted sum of rewards, by registered name or as functions: ``weighted(("math", 1), (mine, 0.2))``.

    Raises:
        PluginError: If no reward has that name.
        ConfigError: As :class:`WeightedSum`.
    """
    # The plugins register rewards: imported late, or it would be a circle.
    from refine_wrapper.plugins.manager import Plugins

    plugins = Plugins() if any(isinstance(reward, str) for reward, _ in parts) else None
    pairs: list[tuple[Reward, float]] = []
    for reward, weight in parts:
        if isinstance(reward, str):
            assert plugins is not None
            reward = plugins.get("reward", reward)
        pairs.append((reward, weight))
    return WeightedSum(pairs, name=name)


def _name(reward: Any) -> str:
    return getattr(reward, "__name__", type(reward).__name__)


def _checked_weight(reward: Any, weight: Any) -> float:
    if not callable(reward):
        raise ConfigError(f"refine: {reward!r} is no reward function; to sum rewards by name use weighted()")
    called = reward if inspect.isroutine(reward) else type(reward).__call__
    if inspect.iscoroutinefunction(called):
        raise ConfigError(
            f"refine: the reward {_name(reward)!r} is asynchronous; a weighted sum calls its parts directly"
        )
    value = scalar(weight)
    if value is None or not math.isfinite(value):
        raise ConfigError(f"refine: the weight of reward {_name(reward)!r} must be a finite number, not {weight!r}")
    return value


def _checked_values(reward: Any, returned: Any, expected: int) -> list[float | None]:
    try:
        values: list[Any] = list(returned)
    except TypeError:
        raise PluginError(
            f"refine: reward {_name(reward)!r} must return a list of numbers, not {type(returned).__name__}"
        ) from None
    if len(values) != expected:
        raise PluginError(f"refine: reward {_name(reward)!r} returned {len(values)} values for {expected} completions")
    numbers = [None if value is None else scalar(value) for value in values]
    for value, number in zip(values, numbers, strict=True):
        if value is not None and number is None:
            raise PluginError(f"refine: reward {_name(reward)!r} returned {value!r:.80}, which is no number")
    return numbers
