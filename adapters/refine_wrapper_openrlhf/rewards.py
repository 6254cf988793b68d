"""refine-wrapper's rewards as the ``reward_func`` of an OpenRLHF reward file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from refine_wrapper.errors import ConfigError
from refine_wrapper.rewards.interface import Reward

_END = re.compile(r"(?:<\|[^|<>]*\|>|</s>|<eos>|<pad>|\s)+\Z")

RewardFunc = Callable[[Sequence[str], Sequence[str], Sequence[Any]], dict[str, Any]]


def make_reward_func(reward: Reward) -> RewardFunc:
    """What a file for ``--reward.remote_url`` calls ``reward_func``.

    OpenRLHF hands over prompt and answer as one text that still has its end-of-sequence token; the reward gets the
    answer without either, and the data set's label as its column ``answer``.

    What the reward logs (TRL's ``log_metric``) is logged for each sample under the same name.

    Args:
        reward: One of refine-wrapper's rewards, or any function in that form (TRL's).

    Raises:
        ConfigError: If the reward compares the completions of a group: OpenRLHF has them scored one by one.
    """
    if getattr(reward, "needs_group", False):
        raise ConfigError(
            f"refine: the reward {reward.__name__!r} compares the completions of a group, and OpenRLHF has each scored "
            "alone. Set together: false."
        )

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
        completions = [
            _END.sub("", query[len(prompt) :] if query.startswith(prompt) else query)
            for query, prompt in zip(queries, prompts, strict=True)
        ]
        metrics: dict[str, float] = {}
        extra: dict[str, Sequence[Any]] = {}
        values = reward(
            prompts=prompts,
            completions=completions,
            answer=list(labels),
            log_metric=metrics.__setitem__,
            log_extra=extra.__setitem__,
        )
        if None in values:
            row = values.index(None)
            why = "".join(f" ({name}: {column[row]})" for name, column in extra.items() if column[row])
            raise ValueError(f"reward {reward.__name__!r} applies to no answer with the label {labels[row]!r}{why}")
        logged = {name: [value] * len(values) for name, value in metrics.items()}
        return {"rewards": values, "scores": values, "extra_logs": {reward.__name__: values, **logged}}

    return reward_func
