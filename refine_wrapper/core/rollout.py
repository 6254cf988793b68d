"""The two stages of one prompt on asynchronous hosts: the one place where their order lives.

All G members of a group ask for the plan; the first arrival starts Stage 1, the others await the same task. A member
that is cancelled does not take Stage 1 away from its siblings; when nobody is left who wants it, it is cancelled and
forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass, field

from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.types import DraftOutcome, GroupOutcome, GroupPlan, Prompt, Refinement, SampledDraft

SampleDraft = Callable[[int], Awaitable[SampledDraft]]
"""Samples and scores draft number ``index`` of a group on q, with the host's training sampling and reward path."""


@dataclass(slots=True)
class _Group:
    num_members: int
    arrived: int = 0
    present: int = 0
    stage1: asyncio.Task[GroupPlan] | None = None
    plan: GroupPlan | None = None
    refinements: dict[int, Refinement] = field(default_factory=dict[int, Refinement])
    stage2_started: float = 0.0
    step: int | None = None
    policy_version: int | str | None = None


class Member:
    """One of the G members of a group, between its arrival and its leaving. Made by :meth:`Rollout.join`."""

    def __init__(self, rollout: Rollout, group: _Group) -> None:
        self._rollout = rollout
        self._group = group
        self._number = group.arrived
        group.arrived += 1
        group.present += 1

    async def plan(self, group_id: str, question: Prompt, sample_draft: SampleDraft) -> GroupPlan:
        """The group's plan; runs Stage 1 on the first call of a group, awaits it on the others.

        Raises:
            NoDraftError: In every member of the group, if ``on_no_draft`` is ``error`` and no draft is usable.
        """
        group = self._group
        if group.stage1 is None:
            group.stage1 = asyncio.ensure_future(self._rollout.run_stage1(group_id, question, sample_draft))
        # Shielded: cancelling this member must not cancel what its siblings are waiting for.
        plan = await asyncio.shield(group.stage1)
        if group.plan is None:
            group.plan, group.stage2_started = plan, time.perf_counter()
        return plan

    def report(
        self, refinement: Refinement, *, step: int | None = None, policy_version: int | str | None = None
    ) -> None:
        """Hand over this member's finished refinement, for metrics and trace."""
        self._group.refinements[self._number] = refinement
        self._group.step = step if step is not None else self._group.step
        self._group.policy_version = policy_version if policy_version is not None else self._group.policy_version


class Rollout:
    """Runs Stage 1 once per group and hands every member the same plan.

    Memory is proportional to the groups in flight: a group is dropped when its last member has left.

    Args:
        refiner: Decides.
        on_metrics: Called with the metrics of each finished group.
        on_finished: Called with the key and the outcome of each finished group instead of ``refiner.finish``, where
            groups are collected into batches, perhaps in another process, which then calls ``finish``.
    """

    def __init__(
        self,
        refiner: Refiner,
        on_metrics: Callable[[dict[str, float]], None] | None = None,
        *,
        on_finished: Callable[[Hashable, GroupOutcome], None] | None = None,
    ) -> None:
        self._refiner = refiner
        self._on_metrics = on_metrics
        self._on_finished = on_finished
        self._groups: dict[Hashable, _Group] = {}

    @property
    def groups_in_flight(self) -> int:
        """Groups with members present or still to come."""
        return len(self._groups)

    @contextmanager
    def join(self, key: Hashable, num_members: int) -> Generator[Member]:
        """Be a member of the group ``key`` for the length of a ``with`` block.

        Args:
            key: Identity of the group: an id, or an object all members share. Never the prompt's text.
            num_members: G, how many members will come. The group is dropped when all have come and left, or when one
                leaves by an exception while no other is present.
        """
        group = self._groups.setdefault(key, _Group(num_members))
        member = Member(self, group)
        torn_down = True
        try:
            yield member
            torn_down = False
        finally:
            group.present -= 1
            if group.present == 0 and (torn_down or group.arrived >= group.num_members):
                self.discard(key)

    def discard(self, key: Hashable) -> None:
        """Forget a group: cancel its Stage 1 if that still runs, pass it to the observers if it finished.

        Idempotent.
        """
        group = self._groups.pop(key, None)
        if group is None:
            return
        if group.stage1 is not None and not group.stage1.done():
            group.stage1.cancel()
        # A group that is not trained may not be sampled either; that it was left out must still be counted.
        if group.plan is not None and (group.refinements or not group.plan.trained):
            outcome = GroupOutcome(
                group.plan,
                tuple(group.refinements[number] for number in sorted(group.refinements)),
                stage2_seconds=time.perf_counter() - group.stage2_started,
                step=group.step,
                policy_version=group.policy_version,
            )
            if self._on_finished is not None:
                self._on_finished(key, outcome)
                return
            metrics = self._refiner.finish([outcome])
            if self._on_metrics is not None:
                self._on_metrics(metrics)

    async def run_stage1(self, group_id: str, question: Prompt, sample_draft: SampleDraft) -> GroupPlan:
        """Sample the N drafts of one group concurrently and plan the group. Members call it through ``plan``."""
        early = self._refiner.plan_before_drafts(group_id, question)
        if early is not None:
            return early
        started = time.perf_counter()
        sampled_N = await asyncio.gather(
            *(self._sample(sample_draft, index) for index in range(self._refiner.config.num_drafts))
        )
        return self._refiner.plan(group_id, question, sampled_N, stage1_seconds=time.perf_counter() - started)

    async def _sample(self, sample_draft: SampleDraft, index: int) -> SampledDraft:
        """One draft; its failure is a value, so that it cannot fail the group."""
        timeout = self._refiner.config.draft_timeout
        try:
            sampling = asyncio.ensure_future(sample_draft(index))
            if not await _finished(sampling, timeout):
                detail = f"no answer within draft_timeout={timeout} s"
                return SampledDraft(failure=DraftOutcome.TIMEOUT, detail=detail)
            if sampling.cancelled():  # one request of Stage 1, not Stage 1 itself: then the line above had raised
                return SampledDraft(failure=DraftOutcome.EXCEPTION, detail="the host cancelled this draft")
            return sampling.result()
        except (asyncio.TimeoutError, TimeoutError):
            return SampledDraft(failure=DraftOutcome.TIMEOUT, detail="the host timed out")
        except Exception as error:
            return SampledDraft(failure=DraftOutcome.EXCEPTION, detail=f"{type(error).__name__}: {error}")


async def _finished(sampling: asyncio.Future[SampledDraft], timeout: float | None) -> bool:
    """Whether it ended in time, however it ended. Where it did not, or this is cancelled, it is cancelled too."""
    try:
        await asyncio.wait((sampling,), timeout=timeout)
        return sampling.done()
    finally:
        if not sampling.done():
            sampling.cancel()
            await asyncio.wait((sampling,))
            if not sampling.cancelled():
                sampling.exception()  # looked at, so that asyncio does not report it as forgotten
