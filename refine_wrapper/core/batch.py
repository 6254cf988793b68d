"""The same bookkeeping for hosts that work on whole synchronous batches, whose groups may straddle processes.

Rows are ordered rank-major and each group's rows are adjacent, as TRL's samplers lay them out: the group of global
row r is r // G. Stage 1 is laid out the same way with N rows a group. Every rank calls the same functions with the same
gathered arguments and so comes to the same plans; nothing is decided on one rank alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.types import GroupOutcome, GroupPlan, Prompt, Refinement, RowPlan, SampledDraft


@dataclass(frozen=True, slots=True)
class Question:
    """One group of a batch before Stage 1."""

    group_id: str
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class DraftRows:
    """Layout of Stage 1 over ranks.

    Attributes:
        groups: For every global draft row, the position of its group in the batch. N adjacent rows per group. Where
            the rows do not divide evenly over the ranks, whole groups are repeated at the end; see ``num_real``.
        num_real: Rows that belong to a group; the rest is padding, sampled because hosts need equal shares, then
            dropped.
    """

    groups: tuple[int, ...]
    num_real: int

    def share(self, rank: int, num_ranks: int) -> tuple[int, ...]:
        """Groups of the draft rows that one rank samples, in order."""
        per_rank = len(self.groups) // num_ranks
        return self.groups[rank * per_rank : (rank + 1) * per_rank]


class BatchStages:
    """Both stages of one synchronous batch.

    Args:
        refiner: Decides.
        questions_P: The groups of the global batch, in row order.
        num_ranks: Processes that share the batch.
    """

    def __init__(self, refiner: Refiner, questions_P: Sequence[Question], num_ranks: int = 1) -> None:
        self._refiner = refiner
        self._questions_P = tuple(questions_P)
        self._early_P = tuple(refiner.plan_before_drafts(q.group_id, q.prompt) for q in self._questions_P)
        self._plans_P: tuple[GroupPlan, ...] | None = None
        self._started = time.perf_counter()
        self._stage2_started = self._started
        self.draft_rows = self._lay_out(num_ranks)

    @property
    def plans_P(self) -> tuple[GroupPlan, ...]:
        """The plan of every group, once :meth:`plan` was called."""
        assert self._plans_P is not None, "plan() comes before plans_P"
        return self._plans_P

    def plan(
        self, sampled_rows: Sequence[SampledDraft], *, stage1_seconds: float | None = None
    ) -> tuple[GroupPlan, ...]:
        """Plan every group from the gathered drafts of all ranks, in the order of ``draft_rows``.

        Args:
            sampled_rows: The drafts.
            stage1_seconds: Wall time of Stage 1; None: the time since this object was made.

        Raises:
            NoDraftError: If ``on_no_draft`` is ``error`` and a group has no usable draft.
        """
        if len(sampled_rows) != len(self.draft_rows.groups):
            raise ValueError(f"Stage 1 sampled {len(sampled_rows)} rows, {len(self.draft_rows.groups)} were laid out.")
        seconds = time.perf_counter() - self._started if stage1_seconds is None else stage1_seconds
        sampled: dict[int, list[SampledDraft]] = {}
        for group, draft in zip(self.draft_rows.groups[: self.draft_rows.num_real], sampled_rows, strict=False):
            sampled.setdefault(group, []).append(draft)
        self._plans_P = tuple(
            early
            if early is not None
            else self._refiner.plan(question.group_id, question.prompt, sampled[position], stage1_seconds=seconds)
            for position, (question, early) in enumerate(zip(self._questions_P, self._early_P, strict=True))
        )
        self._stage2_started = time.perf_counter()
        return self._plans_P

    def rows(self, num_refinements: int) -> list[RowPlan]:
        """The plan of every global refinement row: G adjacent rows per group."""
        return [plan.row() for plan in self.plans_P for _ in range(num_refinements)]

    def finish(
        self,
        refinements: Sequence[Refinement],
        *,
        step: int | None = None,
        policy_version: int | str | None = None,
    ) -> dict[str, float]:
        """Take note of the finished batch, as :meth:`outcomes` has it. Returns its metrics."""
        return self._refiner.finish(self.outcomes(refinements, step=step, policy_version=policy_version))

    def outcomes(
        self,
        refinements: Sequence[Refinement],
        *,
        step: int | None = None,
        policy_version: int | str | None = None,
    ) -> list[GroupOutcome]:
        """The finished groups; ``refinements`` are the gathered rows of all ranks."""
        num_refinements, rest = divmod(len(refinements), len(self.plans_P))
        if rest:
            raise ValueError(f"{len(refinements)} refinements do not divide over {len(self.plans_P)} groups.")
        seconds = time.perf_counter() - self._stage2_started
        return [
            GroupOutcome(
                plan,
                tuple(refinements[position * num_refinements : (position + 1) * num_refinements]),
                stage2_seconds=seconds,
                step=step,
                policy_version=policy_version,
            )
            for position, plan in enumerate(self.plans_P)
        ]

    def _lay_out(self, num_ranks: int) -> DraftRows:
        num_drafts = self._refiner.config.num_drafts
        open_groups = [position for position, early in enumerate(self._early_P) if early is None]
        num_groups = len(open_groups)
        padded = list(open_groups)
        while open_groups and len(padded) * num_drafts % num_ranks:
            padded.append(open_groups[(len(padded) - num_groups) % num_groups])
        rows = tuple(position for position in padded for _ in range(num_drafts))
        return DraftRows(rows, num_groups * num_drafts)
