"""Stage 1 in TRL's trainers: which groups a batch has, over all ranks, and this rank's share of their drafts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from refine_wrapper.core.batch import BatchStages, Question
from refine_wrapper.core.refiner import Refiner
from refine_wrapper.core.types import SampledDraft, for_one_row
from refine_wrapper.hosts.launch.report import note_refined
from refine_wrapper_trl.ahead import Ridden, Rows, served
from refine_wrapper_trl.isolate import stage1_isolated
from refine_wrapper_trl.rows import Drawn, Group, gather, masks_of, merge_extra_fields
from refine_wrapper_trl.scoring import Scoring


@dataclass(frozen=True)
class LaidOut:
    """Stage 1 of one generation batch before it is sampled.

    Attributes:
        rows: The batch, told apart by identity.
        groups_P: Its groups, over all ranks.
        stages: Their stages.
        share: The group of each draft row that this rank samples.
    """

    rows: Rows
    groups_P: list[Group]
    stages: BatchStages
    share: list[Group]


class Drafting:
    """Stage 1 of one trainer.

    Args:
        trainer: The TRL trainer.
        refiner: Decides.
        scoring: Reads texts and rewards.

    Attributes:
        running: Whether the host works on drafts at the moment.
    """

    def __init__(self, trainer: Any, refiner: Refiner, scoring: Scoring) -> None:
        self._trainer = trainer
        self._refiner = refiner
        self._scoring = scoring
        self._batches_of_step = (-1, 0)
        self.running = False

    def groups_of(self, rows: Rows, prompts: list[Any]) -> list[Group]:
        """The groups of a batch, over all ranks."""
        trainer = self._trainer
        group_size = getattr(trainer, group_size_name(trainer))
        first_row = trainer.accelerator.process_index * len(prompts)
        # A group's rows are adjacent and may straddle ranks; the rank that has its first row speaks for it.
        starts = [row for row in range(len(prompts)) if (first_row + row) % group_size == 0]
        return gather([(prompts[row], rows[row]) for row in starts], trainer.accelerator.num_processes)

    def lay_out(self, rows: Rows, groups_P: list[Group], group_ids_P: Sequence[str] | None = None) -> LaidOut:
        """Whose drafts this rank samples."""
        accelerator = self._trainer.accelerator
        ids = self._group_ids(len(groups_P)) if group_ids_P is None else group_ids_P
        questions_P = [Question(group_id, prompt) for group_id, (prompt, _) in zip(ids, groups_P, strict=True)]
        stages = BatchStages(self._refiner, questions_P, accelerator.num_processes)
        share = stages.draft_rows.share(accelerator.process_index, accelerator.num_processes)
        return LaidOut(rows, groups_P, stages, [groups_P[position] for position in share])

    def plan(self, laid_out: LaidOut, rows: list[Any], prompts: list[Any], ridden: Ridden | None) -> Drawn:
        """Stage 1: this rank's q' for this rank's q, row by row."""
        trainer, stages = self._trainer, laid_out.stages
        started = time.perf_counter()
        sampled = self._sample_drafts(laid_out.share, ridden) if laid_out.share else []
        stages.plan(sampled, stage1_seconds=time.perf_counter() - started)
        if self._refiner.config.active:
            note_refined("trl", trainer=type(trainer).__name__, num_drafts=self._refiner.config.num_drafts)
        group_size = getattr(trainer, group_size_name(trainer))
        first_row = trainer.accelerator.process_index * len(prompts)
        planned = stages.rows(group_size)[first_row : first_row + len(prompts)]
        # Rows that stay plain keep the host's own object.
        refined = [row.prompt if row.refined else own for row, own in zip(planned, prompts, strict=True)]
        return Drawn(list(laid_out.groups_P), stages, list(stages.plans_P), rows, prompts, refined)

    def _sample_drafts(self, groups: list[Group], ridden: Ridden | None) -> list[SampledDraft]:
        """Sample and score this rank's draft rows by the host's own methods; returns all ranks' rows, in order.

        Where they were sampled ahead, the host is given those samples.
        """
        trainer, num_ranks = self._trainer, self._trainer.accelerator.num_processes
        prompts = [for_one_row(prompt) for prompt, _ in groups]
        inputs = [dict(row) for _, row in groups]
        config = self._refiner.config
        self.running = True
        try:
            with stage1_isolated(
                trainer, group_size_name(trainer), config.num_drafts, len(prompts), config.draft_timeout
            ) as failures:
                with served(trainer, ridden) if ridden else nullcontext():
                    generated = trainer._generate(prompts)
                completion_ids, completions = generated[1], generated[2 if len(generated) == 3 else 3]
                merge_extra_fields(inputs, generated)
                rewards = trainer._calculate_rewards(inputs, prompts, completions, completion_ids)
        finally:
            self.running = False
        version = ridden.policy_version if ridden else int(trainer.state.global_step)
        local = [
            (*self._scoring.decode(ids, mask), *failures.get(row, (None, "")))
            for row, (ids, mask) in enumerate(zip(completion_ids, masks_of(generated), strict=True))
        ]
        sampled = gather(local, num_ranks)
        return [
            SampledDraft(text, None if reward != reward else reward, num_tokens, finished, failure, detail, version)
            for (text, num_tokens, finished, failure, detail), reward in zip(
                sampled, self._scoring.scalars(rewards), strict=True
            )
        ]

    def _group_ids(self, num_groups: int) -> list[str]:
        """Ids that are the same on every rank and differ between batches, also where a step has several."""
        step = int(self._trainer.state.global_step)
        count = self._batches_of_step[1] + 1 if self._batches_of_step[0] == step else 0
        self._batches_of_step = (step, count)
        mode = "train" if self._trainer.model.training else "eval"
        return [f"{mode}-{step}-{count}-{position}" for position in range(num_groups)]


def group_size_name(trainer: Any) -> str:
    return "num_generations" if trainer.model.training else "num_generations_eval"
