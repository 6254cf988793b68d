"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2) on synchronous batches.

A group whose rewards are all equal has advantages of zero and teaches nothing. DAPO samples other prompts in its place
until the batch is full of groups that do. Here that is tried at most ``limit`` times a batch, and a group that nothing
has replaced by then stays, with its advantages of zero. (The paper's recipe in veRL ends the run there.)

Every decision follows from gathered rewards, the seed and the ids of groups. So every rank makes the same one, nothing
has to be saved in a checkpoint, and the host's own order of the data, which epochs and resuming count on, is untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Final

from refine_wrapper.core.metrics import differ
from refine_wrapper.core.selection.draw import draw
from refine_wrapper.core.types import GroupId


@dataclass(frozen=True, slots=True)
class Candidate:
    """A group to sample, that takes the place of one of the batch if it has a gradient.

    Attributes:
        position: Of the group in the batch that it may replace.
        group_id: Its own.
        prompt_index: Of its prompt in the data set; None: the prompt of the group that it may replace.
    """

    position: int
    group_id: GroupId
    prompt_index: int | None


def has_gradient(trained_P: Sequence[bool], rewards_FR: Sequence[Sequence[float]]) -> list[bool]:
    """Which groups of a batch have a gradient: those that are trained and whose rewards are not all equal.

    Args:
        trained_P: Whether the mode trains each group.
        rewards_FR: Rewards of all rows, groups adjacent, NaN where there is none. One sequence of the rewards that the
            advantages are computed from; several where the host normalises each reward function's on its own, one of
            which is then enough.
    """
    group_size = len(rewards_FR[0]) // len(trained_P)
    return [
        trained and any(differ(rewards[position * group_size : (position + 1) * group_size]) for rewards in rewards_FR)
        for position, trained in enumerate(trained_P)
    ]


class Resampling:
    """Which groups of one batch are drawn again, round by round. :meth:`candidates` and :meth:`replace` take turns.

    Args:
        group_ids_P: Ids of the groups of the batch.
        active_P: Which of them have a gradient at the first draw.
        limit: Most rounds.
        seed: Of the choice of prompts.
        num_prompts: Size of the data set that new prompts are drawn from, each with the same chance and none twice in a
            batch as long as there are others; None: groups are drawn again on their own prompts.
        group_size: G.
        num_ranks: Processes that sample equal shares of the rows; where these do not come out even, further candidates
            fill up.
    """

    def __init__(
        self,
        group_ids_P: Sequence[GroupId],
        active_P: Sequence[bool],
        *,
        limit: int,
        seed: int,
        num_prompts: int | None,
        group_size: int,
        num_ranks: int = 1,
    ) -> None:
        self._ids_P = tuple(group_ids_P)
        self._open = [position for position, active in enumerate(active_P) if not active]
        self._limit, self._seed, self._num_prompts = limit, seed, num_prompts
        self._multiple: Final = num_ranks // gcd(num_ranks, group_size)
        self._attempts = [0] * len(self._ids_P)
        self._drawn: set[int] = set()
        self._candidates: tuple[Candidate, ...] = ()
        self.num_inactive: Final = len(self._open)
        self.num_rounds = 0
        self.num_groups = 0

    def candidates(self) -> tuple[Candidate, ...]:
        """The groups to sample next: at least one for each group without a gradient. Empty when it is over."""
        if not self._open or self.num_rounds >= self._limit:
            return ()
        self.num_rounds += 1
        number = -(-len(self._open) // self._multiple) * self._multiple
        self._candidates = tuple(self._candidate(self._open[i % len(self._open)]) for i in range(number))
        self.num_groups += number
        return self._candidates

    def replace(self, active_C: Sequence[bool]) -> dict[int, int]:
        """Take note of which candidates have a gradient.

        Returns:
            Position in the batch -> position among the candidates, for groups that are replaced.
        """
        taken: dict[int, int] = {}
        for number, (candidate, active) in enumerate(zip(self._candidates, active_C, strict=True)):
            if active:
                taken.setdefault(candidate.position, number)
        self._open = [position for position in self._open if position not in taken]
        return taken

    def metrics(self, *, completions: int) -> dict[str, float]:
        """The metrics of the batch; ``completions``: how many were sampled for candidates, drafts included."""
        return {
            "refine/inactive_groups": float(self.num_inactive),
            "refine/inactive_groups_kept": float(len(self._open)),
            "refine/resampling_rounds": float(self.num_rounds),
            "refine/resampled_groups": float(self.num_groups),
            "refine/resampled_completions": float(completions),
        }

    def _candidate(self, position: int) -> Candidate:
        self._attempts[position] += 1
        group_id = replace(self._ids_P[position], attempt=self._attempts[position])
        return Candidate(position, group_id, None if self._num_prompts is None else self._prompt(group_id))

    def _prompt(self, group_id: GroupId) -> int:
        assert self._num_prompts is not None
        if len(self._drawn) >= self._num_prompts:
            self._drawn.clear()
        index = int(draw(self._seed, str(group_id), "dynamic_sampling") * self._num_prompts)
        while index in self._drawn:
            index = (index + 1) % self._num_prompts
        self._drawn.add(index)
        return index


def placed(group_size: int, replaced: Mapping[int, int], first_row: int, num_rows: int) -> Iterable[tuple[int, int]]:
    """(row of this rank, row of the candidates) for every row of a rank that a candidate's row takes the place of.

    Args:
        group_size: G.
        replaced: What :meth:`Resampling.replace` returned.
        first_row: Global row with which the rank's share begins.
        num_rows: Rows of the rank.
    """
    for position, number in replaced.items():
        for offset in range(group_size):
            row = position * group_size + offset - first_row
            if 0 <= row < num_rows:
                yield row, number * group_size + offset
