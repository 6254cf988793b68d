"""TRL's GRPO and RLOO, with refinement: drop-in names for a script of your own."""

from __future__ import annotations

from dataclasses import dataclass

from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from refine_wrapper_trl.fields import RefineFields
from refine_wrapper_trl.mixin import RefineMixin


@dataclass
class RefineGRPOConfig(RefineFields, GRPOConfig):
    """``trl.GRPOConfig`` with the ``refine_*`` settings; docs/configuration.md lists them."""


@dataclass
class RefineRLOOConfig(RefineFields, RLOOConfig):
    """``trl.RLOOConfig`` with the ``refine_*`` settings; docs/configuration.md lists them."""


class RefineGRPOTrainer(RefineMixin, GRPOTrainer):
    """``trl.GRPOTrainer`` that trains on refinements of its own best drafts."""


class RefineRLOOTrainer(RefineMixin, RLOOTrainer):
    """``trl.RLOOTrainer`` that trains on refinements of its own best drafts."""
