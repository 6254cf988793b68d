"""Held-out accuracy, measured the same way whichever host trained the model.

:func:`evaluate` with :class:`EvaluationSettings` is what ``refine-wrapper eval`` does; docs/evaluation.md says what is
measured. Neither torch nor an engine is imported before a model is loaded.
"""

from refine_wrapper.study.evaluation.engines.interface import Engine
from refine_wrapper.study.evaluation.problems import Problem, ProblemSet, problem_set, read_problems
from refine_wrapper.study.evaluation.runner import Job, Progress, evaluate
from refine_wrapper.study.evaluation.settings import EvaluationSettings
from refine_wrapper.study.evaluation.statistics import Estimate
from refine_wrapper.study.evaluation.summary import Evaluation, Measure

__all__ = [
    "Engine",
    "Estimate",
    "Evaluation",
    "EvaluationSettings",
    "Job",
    "Measure",
    "Problem",
    "ProblemSet",
    "Progress",
    "evaluate",
    "problem_set",
    "read_problems",
]
