"""refine-wrapper's rewards as the ``reward_func`` of an OpenRLHF reward file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from refine_wrapper.rewards.interface import Reward

_END = re.compile(r"(?:<\|[^|<>]*\|>|</s>|<eos>|<pad>|\s)+\Z")

RewardFunc = Callable[[Sequence[str], Sequence[str], Sequence[Any]], dict[str, Any]]


def make_reward_func(reward: Reward) -> RewardFunc:
    """What a file for ``--reward.remote_url`` calls ``reward_func``.

    OpenRLHF hands over prompt and answer as one text that still has its end-of-sequence token; the reward gets the
    answer without either, and the data set's label as its column ``answer``.

    Args:
        reward: One of refine-wrapper's rewards, or any function in that form (TRL's).
    """

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
        completions = [
            _END.sub("", query[len(prompt) :] if query.startswith(prompt) else query)
            for query, prompt in zip(queries, prompts, strict=True)
        ]
        values = reward(prompts=prompts, completions=completions, answer=list(labels))
        if None in values:
            raise ValueError(f"reward {reward.__name__!r} applies to no answer with the label {labels[0]!r}")
        return {"rewards": values, "scores": values, "extra_logs": {reward.__name__: values}}

    return reward_func
