"""The built-in rewards, and the package's own answers to the reward hooks, asked last."""

from __future__ import annotations

from typing import Any

from refine_wrapper.hookspecs import hookimpl
from refine_wrapper.rewards import answers
from refine_wrapper.rewards.scalar import scalar


@hookimpl(trylast=True)
def normalize_reward(reward: Any) -> float | None:
    return scalar(reward)


@hookimpl(trylast=True)
def extract_answer(text: str) -> str:
    return answers.extract_answer(text)
