"""Two-stage refinement inside veRL's own trainers.

Add ``+refine=best_of_4`` to the command you already run (the config group is on Hydra's search path once this package
is installed), or put ``refine-wrapper run --refine.num_drafts 4 --`` before it. Nothing else changes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refine_wrapper_verl.manager import RefineAgentLoopManager
    from refine_wrapper_verl.rewards import make_compute_score

__all__ = ["RefineAgentLoopManager", "make_compute_score"]


def __getattr__(name: str) -> object:
    # Loaded on first use: the plugin manager and Hydra import this package in processes that must not import veRL.
    if name == "RefineAgentLoopManager":
        return import_module("refine_wrapper_verl.manager").RefineAgentLoopManager
    if name == "make_compute_score":
        return import_module("refine_wrapper_verl.rewards").make_compute_score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
