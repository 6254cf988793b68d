"""reasoning-gym's own verifier, on the first word of the answer."""

import json

import reasoning_gym

from refine_wrapper_openrlhf import make_reward_func

VERIFIER = reasoning_gym.create_dataset("chain_sum", seed=0, size=1)


def verified(*, completions, answer, **_):
    """One score per completion; ``answer`` has what the data set calls its label."""
    words = [(text.split() or [""])[0] for text in completions]
    return [float(VERIFIER.score_answer(word, json.loads(entry))) for word, entry in zip(words, answer, strict=True)]


reward_func = make_reward_func(verified)
