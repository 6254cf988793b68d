"""refine-wrapper's rewards as the custom reward function of a veRL run."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from refine_wrapper.errors import ConfigError

ComputeScore = Callable[..., Awaitable[dict[str, Any]]]


def make_compute_score(reward: Any, *, question: str = "question") -> ComputeScore:
    """What a file for ``reward.custom_reward_function.path`` calls ``compute_score``.

    veRL hands a reward function no prompt: the reward gets what ``extra_info`` has under ``question``, and the data
    set's ground truth as its column ``answer``. What the reward logs (TRL's ``log_metric``) is returned beside the
    score.

    Args:
        reward: One of refine-wrapper's rewards, or any function in that form (TRL's); may be asynchronous.
        question: The key of ``extra_info`` that has the question, as text or as a conversation.

    Raises:
        ConfigError: If the reward compares the completions of a group: veRL has them scored one by one.
    """
    name = str(getattr(reward, "__name__", type(reward).__name__))
    if getattr(reward, "needs_group", False):
        raise ConfigError(
            f"refine: the reward {name!r} compares the completions of a group, and veRL has each scored alone. Set "
            "together: false."
        )
    is_async = inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__)

    async def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **_: Any
    ) -> dict[str, Any]:
        metrics: dict[str, float] = {}
        extra: dict[str, Sequence[Any]] = {}
        arguments: dict[str, Any] = {
            "prompts": [(extra_info or {}).get(question)],
            "completions": [solution_str],
            "answer": [ground_truth],
            "data_source": [data_source],
            "extra_info": [extra_info],
            "log_metric": metrics.__setitem__,
            "log_extra": extra.__setitem__,
        }
        called = reward(**arguments) if is_async else asyncio.to_thread(reward, **arguments)
        (value,) = await called
        if value is None:
            why = "".join(f" ({column}: {values[0]})" for column, values in extra.items() if values[0])
            raise ValueError(f"reward {name!r} applies to no answer with the ground truth {ground_truth!r}{why}")
        return {"score": value, name: value, **metrics}

    return compute_score
