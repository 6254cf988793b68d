"""Accuracy and format with weights 1.0 and 1.0, as in the paper."""

from refine_wrapper.rewards.weighted import weighted
from refine_wrapper_openrlhf import make_reward_func

reward_func = make_reward_func(weighted(("math", 1.0), ("format", 1.0), name="accuracy_and_format"))
