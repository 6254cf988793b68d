"""Accuracy + format, weights 1.0 / 1.0 [paper], as a reward function of veRL."""

from __future__ import annotations

from typing import Any

from refine_wrapper.rewards.format import FormatReward
from refine_wrapper.rewards.math import MathReward

ACCURACY, FORMAT = MathReward(), FormatReward()


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any
) -> dict[str, float]:
    """The sum is what is trained; ``acc`` is what veRL reports in validation."""
    accuracy = ACCURACY(prompts=[""], completions=[solution_str], answer=[ground_truth])[0] or 0.0
    well_formed = FORMAT(prompts=[""], completions=[solution_str])[0] or 0.0
    return {"score": accuracy + well_formed, "acc": accuracy, "format": well_formed}
