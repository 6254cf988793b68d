"""Finished groups on their way from the workers, where they finish, to the trainer's logger."""

from __future__ import annotations

from dataclasses import replace

from refine_wrapper.core.types import GroupOutcome
from refine_wrapper.plugins.hookspecs import hookimpl
from refine_wrapper.settings.config import RefineConfig


class FinishedGroups:
    """An observer like any plugin's; each worker has one and the manager empties it."""

    def __init__(self) -> None:
        self._outcomes: list[GroupOutcome] = []

    @hookimpl
    def group_finished(self, outcome: GroupOutcome, config: RefineConfig) -> None:
        """Keep what the metrics are made of; prompts and drafts are much text that they do not read."""
        plan = outcome.plan
        drafts_N = tuple(replace(draft, text="") for draft in plan.drafts_N)
        selection = plan.selection and replace(plan.selection, draft=replace(plan.selection.draft, text=""))
        slim = replace(plan, question="", prompt="", drafts_N=drafts_N, selection=selection)
        self._outcomes.append(replace(outcome, plan=slim))

    def take(self) -> list[GroupOutcome]:
        """All that finished since the last call."""
        taken, self._outcomes = self._outcomes, []
        return taken
