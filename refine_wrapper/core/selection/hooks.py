"""The built-in selectors, and the rule that the configured one decides."""

from __future__ import annotations

from collections.abc import Mapping

from refine_wrapper.core.selection.best import Best
from refine_wrapper.core.selection.best_imperfect import BestImperfect
from refine_wrapper.core.selection.interface import Selector
from refine_wrapper.core.selection.median import Median
from refine_wrapper.core.selection.random_choice import RandomChoice
from refine_wrapper.core.selection.worst_formatted import WorstFormatted
from refine_wrapper.core.selection.wrong_first import WrongFirst
from refine_wrapper.plugins.hookspecs import hookimpl


@hookimpl
def register_selectors() -> Mapping[str, type[Selector]]:
    return {
        "best": Best,
        "random": RandomChoice,
        "worst_formatted": WorstFormatted,
        "best_imperfect": BestImperfect,
        "median": Median,
        "wrong_first": WrongFirst,
    }
