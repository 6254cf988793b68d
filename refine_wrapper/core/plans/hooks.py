"""The built-in plan policy."""

from __future__ import annotations

from collections.abc import Mapping

from refine_wrapper.core.plans.interface import PlanPolicy
from refine_wrapper.core.plans.paper import Paper
from refine_wrapper.plugins.hookspecs import hookimpl


@hookimpl
def register_plans() -> Mapping[str, type[PlanPolicy]]:
    return {"paper": Paper}
