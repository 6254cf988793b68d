"""A generative judge as reward, against any OpenAI-compatible endpoint.

By name, with settings from the file in ``REFINE_WRAPPER_JUDGE``: ``weighted(("judge", 1.0), ("format", 0.2))``. In
Python: ``JudgeReward("judge.yaml")``, or ``AsyncJudgeReward("judge.yaml")`` for TRL. See docs/rewards.md.
"""

from refine_wrapper.rewards.judge.failures import FailureKind, JudgeError, JudgeLimitError
from refine_wrapper.rewards.judge.reward import AsyncJudgeReward, JudgeReward
from refine_wrapper.rewards.judge.settings import JudgeSettings

__all__ = ["AsyncJudgeReward", "FailureKind", "JudgeError", "JudgeLimitError", "JudgeReward", "JudgeSettings", "judge"]

judge = AsyncJudgeReward()
"""With settings from the environment, for ``trl grpo --reward_funcs refine_wrapper.rewards.judge.judge``."""
