"""Refiner: the one decision path of all hosts. Which draft, which text, does it fit, what if it fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from refine_wrapper.core.drafts import type_draft, type_refinement
from refine_wrapper.core.metrics import CausesSeen, CopyWatch, summarize
from refine_wrapper.core.plans.interface import PlanPolicy
from refine_wrapper.core.prompts.builder import PromptBuilder
from refine_wrapper.core.selection.draw import draw
from refine_wrapper.core.selection.interface import SelectionContext, Selector, reward_of
from refine_wrapper.core.trace import TraceWriter
from refine_wrapper.core.types import (
    Action,
    Draft,
    DraftOutcome,
    FallbackCause,
    GroupOutcome,
    GroupPlan,
    Prompt,
    PromptRoom,
    Refinement,
    SampledDraft,
    Selection,
)
from refine_wrapper.errors import ConfigError, NoDraftError, PromptError
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig


@dataclass(frozen=True, slots=True)
class _Fallback:
    cause: FallbackCause
    drafts_N: tuple[Draft, ...] = ()
    selection: Selection | None = None


class Refiner:
    """Plans groups and takes note of finished ones, for one run.

    Args:
        config: The resolved settings.
        room: How the host tokenises prompts and how long one may get.
        plugins: The loaded plugins; by default the installed ones and those the configuration names.
        observe: False on all but one of several processes that see the same groups: no trace, no observers, no warning.

    Raises:
        ConfigError, PluginError, TemplateError: At construction, so that a run fails before anything is sampled.
    """

    def __init__(
        self, config: RefineConfig, room: PromptRoom, plugins: Plugins | None = None, *, observe: bool = True
    ) -> None:
        self.config = config
        self.plugins = Plugins(config.plugin_modules) if plugins is None else plugins
        self.room = room
        self.prompts = PromptBuilder(config, self.plugins, room)
        self._selector = build_selector(config, self.plugins)
        self._plan_policy: PlanPolicy = self.plugins.get("plan", config.plan)()
        self._observe = observe
        self._copy_watch = CopyWatch()
        self._causes_seen = CausesSeen()
        self._trace = (
            TraceWriter(config.trace_dir, texts=config.trace_texts)
            if config.trace_dir is not None and observe
            else None
        )

    def plan_before_drafts(self, group_id: str, question: Prompt) -> GroupPlan | None:
        """What is known of a group before Stage 1: a finished plan (no drafts needed), or None (sample N drafts)."""
        share = self.config.refine_share
        if not self.config.active or (share < 1.0 and draw(self.config.seed, group_id, "refine_share") >= share):
            return GroupPlan(group_id, Action.PLAIN, question, question, cause=FallbackCause.NOT_CHOSEN)
        if not self.prompts.question_fits(question):
            # The host's own behaviour with an over-long question, untouched: on_no_draft does not apply.
            return GroupPlan(group_id, Action.PLAIN, question, question, cause=FallbackCause.QUESTION_TOO_LONG)
        return None

    def plan(
        self, group_id: str, question: Prompt, sampled_N: Sequence[SampledDraft], *, stage1_seconds: float = 0.0
    ) -> GroupPlan:
        """Decide what happens to a group, from its N drafts in index order.

        Raises:
            NoDraftError: If no draft can be used and ``on_no_draft`` is ``error``.
        """
        drafts_N = tuple(type_draft(s, index, self.config, self.plugins) for index, s in enumerate(sampled_N))
        decided = self._decide(group_id, question, drafts_N)
        if isinstance(decided, _Fallback):
            decided = self._fall_back(group_id, question, decided)
        return replace(decided, stage1_seconds=stage1_seconds)

    def refinement(self, sampled: SampledDraft) -> Refinement:
        """A Stage-2 sample whose reward may have failed, typed as drafts are."""
        return type_refinement(sampled, self.plugins)

    def finish(self, outcomes_P: Sequence[GroupOutcome]) -> dict[str, float]:
        """Take note of finished groups: observers, trace, the warning about copying.

        Returns the metrics of the batch.
        """
        metrics = summarize(outcomes_P, max_reward=self.config.max_reward, extract_answer=self._extract_answer)
        metrics = self._causes_seen.keep(metrics)
        if not self._observe:
            return metrics
        self._copy_watch.note([outcome for outcome in outcomes_P if not outcome.replaced], metrics)
        for outcome in outcomes_P:
            if self._trace is not None:
                self._trace.write(outcome)
            self.plugins.hook.group_finished(outcome=outcome, config=self.config)
        return metrics

    def _decide(self, group_id: str, question: Prompt, drafts_N: tuple[Draft, ...]) -> GroupPlan | _Fallback:
        usable = [draft for draft in drafts_N if draft.usable]
        if not usable:
            return _Fallback(FallbackCause.NO_USABLE_DRAFT, drafts_N)
        selection = self._select(group_id, usable)
        try:
            built = self.prompts.build(question, selection.draft.text)
        except PromptError:
            return _Fallback(FallbackCause.UNSUPPORTED_PROMPT, drafts_N, selection)
        if built is None:
            cut = replace(selection.draft, outcome=DraftOutcome.OVER_BUDGET)
            drafts_N = tuple(cut if draft.index == cut.index else draft for draft in drafts_N)
            return _Fallback(FallbackCause.NO_ROOM, drafts_N, replace(selection, draft=cut))
        action = Action(self._plan_policy.decide(group_id, usable, selection.draft, self.config.max_reward))
        refined = action is Action.REFINE
        return GroupPlan(
            group_id,
            action,
            question,
            built.prompt if refined else question,
            drafts_N,
            selection,
            draft_text=built.draft_text if refined else "",
            draft_shortened=refined and built.shortened,
            cause=None if refined else FallbackCause.PLAN_POLICY,
        )

    def _select(self, group_id: str, usable: Sequence[Draft]) -> Selection:
        index: int | None = self.plugins.hook.select_draft(group_id=group_id, drafts=tuple(usable), config=self.config)
        if index is None:
            context = SelectionContext(group_id, self.config.seed, self.config.max_reward)
            chosen, name = self._selector.select(usable, context), self.config.selector
        else:
            chosen, name = next((d for d in usable if d.index == index), None), "hook select_draft"
            if chosen is None:
                raise ConfigError(
                    f"refine: a plugin's select_draft chose draft {index}, which is not among the usable ones "
                    f"{[d.index for d in usable]} of group {group_id!r}."
                )
        tied = sum(reward_of(draft) == reward_of(chosen) for draft in usable)
        return Selection(chosen, name, tied)

    def _fall_back(self, group_id: str, question: Prompt, fallback: _Fallback) -> GroupPlan:
        policy = self.config.on_no_draft
        if policy == "error":
            failures = "; ".join(
                f"draft {d.index}: {d.outcome.value}{f' ({d.detail})' if d.detail else ''}" for d in fallback.drafts_N
            )
            raise NoDraftError(
                f"refine: group {group_id!r} cannot be refined ({fallback.cause.value}) and on_no_draft is 'error'. "
                f"{failures}. Set on_no_draft to 'plain' or 'skip' to go on."
            )
        action = Action.SKIP if policy == "skip" else Action.PLAIN
        return GroupPlan(
            group_id, action, question, question, fallback.drafts_N, fallback.selection, cause=fallback.cause
        )

    def _extract_answer(self, text: str) -> str:
        answer: str = self.plugins.hook.extract_answer(text=text)
        return answer


def build_selector(config: RefineConfig, plugins: Plugins) -> Selector:
    """The configured selector with its options.

    Raises:
        PluginError: If there is none of that name.
        ConfigError: If it does not take the options; with those it has.
    """
    selector: Any = plugins.get("selector", config.selector)
    try:
        return selector(**config.selector_options)
    except TypeError:
        fields = ", ".join(getattr(selector, "__dataclass_fields__", {})) or "none"
        raise ConfigError(
            f"refine: selector {config.selector!r} does not take the options {sorted(config.selector_options)}. It "
            f"has: {fields}."
        ) from None
