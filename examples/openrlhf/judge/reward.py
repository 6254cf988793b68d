"""What a judge thinks of the answer, and a little for its form: `--reward.remote_url judge/reward.py`.

The judge's settings are in the file that the environment variable REFINE_WRAPPER_JUDGE names.
"""

from refine_wrapper.rewards.weighted import weighted
from refine_wrapper_openrlhf import make_reward_func

reward_func = make_reward_func(weighted(("judge", 1.0), ("format", 0.2), name="judge_and_format"))
