"""What a judge thinks of the answer, and a little for its form: `reward.custom_reward_function.path=reward.py`.

The judge's settings are in the file that the environment variable REFINE_WRAPPER_JUDGE names. veRL shows a reward no
prompt: the data set must have the question in `extra_info.question`, as veRL's own examples do.
"""

from refine_wrapper.rewards.weighted import weighted
from refine_wrapper_verl import make_compute_score

compute_score = make_compute_score(weighted(("judge", 1.0), ("format", 0.2), name="judge_and_format"))
