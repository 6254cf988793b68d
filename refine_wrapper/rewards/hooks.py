"""The built-in rewards, and the package's own answers to the reward hooks, asked last."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from refine_wrapper.plugins.hookspecs import hookimpl
from refine_wrapper.rewards import answers
from refine_wrapper.rewards.format import FormatReward
from refine_wrapper.rewards.interface import Reward
from refine_wrapper.rewards.judge import JudgeReward
from refine_wrapper.rewards.math import MathReward
from refine_wrapper.rewards.reasoning_gym import ReasoningGymReward
from refine_wrapper.rewards.scalar import scalar


@hookimpl
def register_rewards() -> Mapping[str, Reward]:
    return _built_in()


@hookimpl(trylast=True)
def normalize_reward(reward: Any) -> float | None:
    return scalar(reward)


@hookimpl(trylast=True)
def extract_answer(text: str) -> str:
    return answers.extract_answer(text)


@cache
def _built_in() -> Mapping[str, Reward]:
    # The same objects for every plugin manager of this process: the process that `math` starts is shared too.
    return {
        "math": MathReward(),
        "format": FormatReward(),
        "reasoning-gym": ReasoningGymReward(),
        "judge": JudgeReward(),  # with the settings that the environment names, read when it is first called
    }
