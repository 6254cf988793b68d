"""Dynamic sampling in TRL's trainers: groups without a gradient are generated and scored again, and merged by rows.

It stands between the host and its ``_generate``: what the host then pads, masks, compares with the reference policy,
normalises, logs and trains is one batch of the usual size, in which some rows were sampled later. Which groups, how
often and on which prompts, the core decides (:mod:`refine_wrapper.core.resampling`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from datasets import Dataset

from refine_wrapper.core.resampling import Candidate, Resampling, has_gradient, placed
from refine_wrapper.core.types import GroupId, for_one_row
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper_trl.isolate import set_apart
from refine_wrapper_trl.phases import OwnRows, Scored, prompt_of_slot
from refine_wrapper_trl.rows import Asked, Record, assemble, gather, joined, needs_images, record
from refine_wrapper_trl.scoring import Scoring

DrawGroups = Callable[[list[Asked], list[GroupId]], Scored]
"""Samples and scores groups, by their ids, as if they were a batch."""


class Resampler:
    """Dynamic sampling of one trainer.

    Args:
        trainer: The TRL trainer.
        config: The resolved settings.
        rounds: Most rounds a batch.
    """

    def __init__(self, trainer: Any, config: RefineConfig, rounds: int) -> None:
        self._trainer = trainer
        self._config = config
        self._rounds = rounds
        self._pool = _pool(trainer) if config.dynamic_sampling_prompts == "new" else None

    def describe(self) -> str:
        """One sentence for the screen."""
        on = "other prompts of the data set" if self._pool is not None else "their own prompts"
        if self._pool is None and self._config.dynamic_sampling_prompts == "new":
            on += " (the data set is a stream)"
        times = "once" if self._rounds == 1 else f"{self._rounds} times"
        return f"dynamic sampling: groups without a gradient are drawn again on {on}, at most {times} a batch"

    def complete(self, scored: Scored, scoring: Scoring, draw: DrawGroups) -> tuple[Scored, dict[str, float]]:
        """The batch, with groups in it that were drawn again where these have a gradient; and the metrics."""
        trainer = self._trainer
        num_ranks, group_size = trainer.accelerator.num_processes, trainer.num_generations
        # Images are put into prompts by the host, before it generates: rows with them keep their prompts.
        pool = None if any(needs_images(asked.row) for asked in scored.asked_P) else self._pool
        resampling = Resampling(
            [group.id for group in scored.groups_P],
            _active(scored, scoring),
            limit=self._rounds,
            seed=self._config.seed,
            num_prompts=None if pool is None else len(pool),
            group_size=group_size,
            num_ranks=num_ranks,
        )
        completions = 0
        while candidates := resampling.candidates():
            asked = [_asked(candidate, scored, pool) for candidate in candidates]
            with set_apart(trainer, len(candidates) * group_size // num_ranks):
                other = draw(asked, [candidate.group_id for candidate in candidates])
            completions += sum(len(group.samples) for group in other.groups_P)
            scored = self._merged(scored, other, resampling.replace(_active(other, scoring)))
        return scored, resampling.metrics(completions=completions)

    def _merged(self, scored: Scored, other: Scored, taken: dict[int, int]) -> Scored:
        """The batch with groups of another draw in the place of some of its own."""
        accelerator, group_size = self._trainer.accelerator, self._trainer.num_generations
        values = joined([scored.logged.values, other.logged.values])
        unused = [group for number, group in enumerate(other.groups_P) if number not in taken.values()]
        gone = [replace(group, replaced=True) for group in (*unused, *(scored.groups_P[p] for p in taken))]
        not_trained = (*scored.not_trained, *other.not_trained, *gone)
        # All ranks take part in this, also where nothing was taken.
        records = self._records(other, set(taken.values()))
        if not taken:
            return replace(scored, not_trained=not_trained, logged=replace(scored.logged, values=values))
        asked_P, groups_P, rewards = list(scored.asked_P), list(scored.groups_P), scored.rewards.clone()
        for position, number in taken.items():
            asked_P[position], groups_P[position] = other.asked_P[number], other.groups_P[number]
            own, new = (slice(p * group_size, (p + 1) * group_size) for p in (position, number))
            rewards[own] = other.rewards[new]
        data, prompts, trained_on = list(scored.own.data), list(scored.own.prompts), list(scored.trained_on)
        of_rows = [record(scored.generated, scored.logged, row) for row in range(len(prompts))]
        first = accelerator.process_index * len(prompts)
        for row, source in placed(group_size, taken, first, len(prompts)):
            asked, group = other.asked_P[source // group_size], other.groups_P[source // group_size]
            data[row], prompts[row] = dict(asked.row), for_one_row(asked.prompt)
            trained_on[row] = prompt_of_slot(group, source % group_size, prompts[row])
            of_rows[row] = records[source]
        generated, logged = assemble(scored.generated, of_rows, values)
        return Scored(
            asked_P=asked_P,
            groups_P=groups_P,
            own=OwnRows(data, prompts),
            trained_on=trained_on,
            generated=generated,
            rewards=rewards,
            logged=logged,
            merged=True,
            metrics=scored.metrics,
            not_trained=not_trained,
        )

    def _records(self, other: Scored, used: set[int]) -> dict[int, Record]:
        """The records of the rows, of all ranks, of groups that are used."""
        accelerator, group_size = self._trainer.accelerator, self._trainer.num_generations
        count = len(other.own.prompts)
        first = accelerator.process_index * count
        own = {
            first + row: record(other.generated, other.logged, row)
            for row in range(count)
            if (first + row) // group_size in used
        }
        together: dict[int, Record] = {}
        for sent in gather([own], accelerator.num_processes):
            together.update(sent)
        return together


def _active(scored: Scored, scoring: Scoring) -> list[bool]:
    """Which groups of a batch have a gradient."""
    return has_gradient([group.trained for group in scored.groups_P], scoring.signals(scored.rewards))


def _asked(candidate: Candidate, scored: Scored, pool: Any) -> Asked:
    if candidate.prompt_index is None:
        return scored.asked_P[candidate.position]
    row = dict(pool[candidate.prompt_index])
    return Asked(row["prompt"], row)


def _pool(trainer: Any) -> Any:
    """The rows that new prompts are drawn from, with the columns that the host's loader leaves; None for a stream."""
    rows = trainer.train_dataset
    if not (hasattr(rows, "__getitem__") and hasattr(rows, "__len__")):
        return None
    return trainer._remove_unused_columns(rows, description="training") if isinstance(rows, Dataset) else rows
