"""The built-in plan policy."""

from __future__ import annotations

from collections.abc import Mapping

from refine_wrapper.hookspecs import hookimpl
from refine_wrapper.plans.interface import PlanPolicy
from refine_wrapper.plans.paper import Paper


@hookimpl
def register_plans() -> Mapping[str, type[PlanPolicy]]:
    return {"paper": Paper}
