"""The same rounds for hosts that work on whole synchronous batches, whose groups may straddle processes.

Rows are ordered rank-major and each group's rows are adjacent, as TRL's samplers lay them out: the group of global
row r is r // S. A wave is one call of the host's generation: the next round of every group that is not over. Every
rank calls the same functions with the same gathered arguments and so plans the same; nothing is decided on one rank.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd

from refine_wrapper.core.modes.interface import GroupSoFar
from refine_wrapper.core.planner import Planner
from refine_wrapper.core.types import Group, PlannedRound, Progress, Prompt, Question, Sample, Use


@dataclass(frozen=True, slots=True)
class WaveRow:
    """One row of a wave.

    Attributes:
        position: Of its group in the batch.
        planned: The round it belongs to.
        slot: The slot it fills, or None: context.
        padding: Sampled because hosts need equal shares, then dropped.
    """

    position: int
    planned: PlannedRound
    slot: int | None
    padding: bool = False

    @property
    def prompt(self) -> Prompt:
        """Its prompt; turns are not shared with other rows."""
        return self.planned.row_prompt()


@dataclass(frozen=True, slots=True)
class Wave:
    """One call of the host's generation.

    Attributes:
        rows: All ranks' rows, the same number for each; those of a group are adjacent.
        repeat: Rows with one prompt come in runs of a multiple of this: for hosts that sample a prompt several times.
    """

    rows: tuple[WaveRow, ...]
    repeat: int

    def share(self, rank: int, num_ranks: int) -> tuple[WaveRow, ...]:
        """The rows that one rank samples, in order."""
        per_rank = len(self.rows) // num_ranks
        return self.rows[rank * per_rank : (rank + 1) * per_rank]

    @property
    def final(self) -> bool:
        """Whether nothing is asked after it."""
        return all(row.planned.ask.final for row in self.rows)


class BatchRounds:
    """All rounds of one synchronous batch: :meth:`next_wave` and :meth:`add` take turns until there is no wave.

    Args:
        planner: Decides.
        questions_P: The groups of the global batch, in row order.
        num_slots: S.
        progress: Of the run.
        num_ranks: Processes that share the batch.
    """

    def __init__(
        self,
        planner: Planner,
        questions_P: Sequence[Question],
        num_slots: int,
        progress: Progress,
        num_ranks: int = 1,
    ) -> None:
        self._planner = planner
        self._num_ranks = num_ranks
        self._groups = [planner.open(question, num_slots, progress) for question in questions_P]
        self._planned: list[PlannedRound | None] = [None] * len(self._groups)
        self._wave: Wave | None = None
        self._started = time.perf_counter()

    def next_wave(self) -> Wave | None:
        """The rows to sample next; None: all groups have ended.

        Rounds that fill the last slots wait until all groups have come that far, so that a batch ends with one call.

        Raises:
            NoDraftError: If ``on_no_draft`` is ``error`` and a group has nothing to show.
        """
        for position, planned in enumerate(self._planned):
            if planned is None and self._groups[position].end is None:
                self._groups[position], self._planned[position] = self._planner.next(self._groups[position])
        open_ = [(position, planned) for position, planned in enumerate(self._planned) if planned is not None]
        going_on = [(position, planned) for position, planned in open_ if not planned.ask.final]
        rounds = going_on or open_
        if not rounds:
            self._wave = None
            return None
        self._wave = self._lay_out(rounds)
        self._started = time.perf_counter()
        return self._wave

    def add(self, samples: Sequence[Sample], *, seconds: float | None = None) -> None:
        """Take the gathered samples of the last wave's rows, of all ranks, in order.

        Args:
            samples: One for each row, padding included.
            seconds: Wall time of the wave; None: the time since it was laid out.
        """
        wave, self._wave = self._wave, None
        if wave is None or len(samples) != len(wave.rows):
            expected = "no wave is open" if wave is None else f"{len(wave.rows)} were laid out"
            raise ValueError(f"{len(samples)} rows were sampled; {expected}.")
        seconds = time.perf_counter() - self._started if seconds is None else seconds
        of_groups: dict[int, list[Sample]] = {}
        for row, sample in zip(wave.rows, samples, strict=True):
            if not row.padding:
                of_groups.setdefault(row.position, []).append(sample)
        for position, joined in of_groups.items():
            self._groups[position] = self._planner.add(self._groups[position], joined, seconds=seconds)
            self._planned[position] = None

    @property
    def so_far_P(self) -> tuple[GroupSoFar, ...]:
        """The groups as they are now."""
        return tuple(self._groups)

    def groups_P(self, *, step: int | None = None) -> list[Group]:
        """The finished groups."""
        return [self._planner.close(group, step=step) for group in self._groups]

    def _lay_out(self, rounds: Sequence[tuple[int, PlannedRound]]) -> Wave:
        rows: list[WaveRow] = []
        for position, planned in rounds:
            fills = planned.ask.use is Use.FILL
            first = len(self._groups[position].slots)
            rows += [WaveRow(position, planned, first + place if fills else None) for place in range(planned.ask.size)]
        repeat = reduce(gcd, (planned.ask.size for _, planned in rounds))
        num_real = 0
        padding = [WaveRow(row.position, row.planned, None, padding=True) for row in rows]
        while len(rows) % self._num_ranks:
            # Whole runs of one prompt, so that the distance of prompts stays the same.
            start = num_real % len(padding)
            rows += padding[start : start + repeat]
            num_real += repeat
        return Wave(tuple(rows), repeat)
