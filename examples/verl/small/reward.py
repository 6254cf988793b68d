"""reasoning-gym's own verifier as a reward function of veRL."""

from __future__ import annotations

import json
from typing import Any

import reasoning_gym

VERIFIERS: dict[str, Any] = {}


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any], **_: Any
) -> float:
    """The verifier's score, on the last word of the answer."""
    name = data_source.partition("/")[2]
    if name not in VERIFIERS:
        VERIFIERS[name] = reasoning_gym.create_dataset(name, seed=0, size=1)
    answer = (solution_str.split() or [""])[-1]
    return float(VERIFIERS[name].score_answer(answer, json.loads(extra_info["entry"])))
