"""Two-stage refinement inside TRL's own trainers.

In a script of your own, replace ``GRPOConfig`` and ``GRPOTrainer`` by ``RefineGRPOConfig`` and
``RefineGRPOTrainer``, or wrap any trainer class (or a live trainer) with :func:`refine`. A script you do not want to
touch is switched on by ``refine-wrapper run --refine.num_drafts 4 -- python train.py``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refine_wrapper_trl.trainers import (
        RefineGRPOConfig,
        RefineGRPOTrainer,
        RefineRLOOConfig,
        RefineRLOOTrainer,
    )
    from refine_wrapper_trl.wrap import refine

__all__ = ["RefineGRPOConfig", "RefineGRPOTrainer", "RefineRLOOConfig", "RefineRLOOTrainer", "refine"]


def __getattr__(name: str) -> object:
    # Loaded on first use: the plugin manager imports this package in processes that must not import TRL.
    if name == "refine":
        return import_module("refine_wrapper_trl.wrap").refine
    if name in __all__:
        return getattr(import_module("refine_wrapper_trl.trainers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
