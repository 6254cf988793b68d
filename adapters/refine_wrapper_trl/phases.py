"""One batch as a value that passes through phases: opened, perhaps sampled in the host's own layout, scored."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from refine_wrapper.core.batch import BatchRounds, Wave
from refine_wrapper.core.types import Group, Outcome, Sample, Slot
from refine_wrapper_trl.rows import Asked, Generated, Logged, Rows
from refine_wrapper_trl.waves import SampledWave


@dataclass(frozen=True)
class Opened:
    """A batch whose groups are known and whose first wave is planned.

    Attributes:
        loaded: This rank's rows as the data loader handed them over; the identity of this list tells batches apart.
        asked_P: What its groups are asked, over all ranks.
        rounds: Their rounds.
        wave: The first wave.
    """

    loaded: Rows
    asked_P: list[Asked]
    rounds: BatchRounds
    wave: Wave | None


@dataclass(frozen=True)
class OwnRows:
    """This rank's rows of a batch.

    Attributes:
        data: Data set rows.
        prompts: q.
    """

    data: Rows
    prompts: list[Any]


@dataclass(frozen=True)
class Sampled:
    """A batch whose last wave is the host's own batch, row by row: the host scores it, later or when asked to.

    Attributes:
        opened: The batch.
        own: This rank's rows.
        sampled_on: The prompts that these were sampled on.
        generated: What the host returned for them.
        earlier: The waves before, none of which filled slots.
    """

    opened: Opened
    own: OwnRows
    sampled_on: list[Any]
    generated: Generated
    earlier: tuple[SampledWave, ...]

    def with_completions(self, completion_ids: list[list[int]]) -> Sampled:
        """The batch with other completions: an override of ``_generate`` outside of this package may change them."""
        parts = self.generated.parts
        return replace(self, generated=Generated((parts[0], completion_ids, *parts[2:])))


@dataclass(frozen=True)
class Scored:
    """A batch whose groups are finished.

    Attributes:
        asked_P: What its groups were asked, over all ranks.
        groups_P: The groups, over all ranks.
        own: This rank's rows; so are the next two.
        trained_on: The prompts they are trained under.
        generated: What the host goes on with.
        rewards: Of all ranks' rows, by reward function.
        logged: What reward functions logged that the host does not know yet.
        merged: Whether the rows come from several calls of the host's ``_generate``.
        metrics: What the host logged in these calls and logs in no other way, to be logged once for the batch.
        not_trained: Groups that were sampled in its course, and that dynamic sampling replaced or did not need.
    """

    asked_P: list[Asked]
    groups_P: list[Group]
    own: OwnRows
    trained_on: list[Any]
    generated: Generated
    rewards: torch.Tensor
    logged: Logged = field(default_factory=Logged)
    merged: bool = False
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    not_trained: tuple[Group, ...] = ()

    def trained_rows(self) -> list[bool]:
        """Which rows of all ranks are trained: all but those that the mode leaves out, or whose scoring failed."""
        return [
            slot.trained and not _failed(group.samples[slot.sample])
            for group in self.groups_P
            for slot in group.slots_S
        ]

    def slots(self) -> list[Slot]:
        """The slots of all ranks' rows."""
        return [slot for group in self.groups_P for slot in group.slots_S]


def prompt_of_slot(group: Group, number: int, question: Any) -> Any:
    """The prompt that a slot is trained under; where that is q, the host's own object."""
    slot = group.slots_S[number]
    sample = group.samples[slot.sample]
    if slot.on_question or sample.shown is None:
        return question
    return group.rounds[sample.round].row_prompt()


def _failed(sample: Sample) -> bool:
    """Whether a row has no reward though one was due. Where all functions returned None the host knows what to do."""
    return sample.reward is None and sample.outcome is not Outcome.NO_REWARD
