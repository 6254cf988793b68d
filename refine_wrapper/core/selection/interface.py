"""What an author of a selection policy writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from refine_wrapper.core.types import Sample


@dataclass(frozen=True, slots=True)
class SelectionContext:
    """What a selector may look at beside the drafts.

    Attributes:
        group_id: Identity of the group.
        seed: ``RefineConfig.seed``.
        max_reward: The highest reward there is.
    """

    group_id: str
    seed: int
    max_reward: float


class Selector(Protocol):
    """Chooses one of the usable drafts of a group.

    Write a frozen dataclass whose fields are the options users may set in ``selector_options``, give it ``select``,
    and return the class from the hook ``register_selectors``. ``drafts`` is never empty, is ordered by draft index, and
    holds only drafts with a finite reward. The result must depend on the arguments alone: every rank of a run, and
    every order in which drafts arrive, must give the same choice.
    """

    def select(self, drafts: Sequence[Sample], context: SelectionContext) -> Sample: ...


def reward_of(draft: Sample) -> float:
    """The reward of a usable draft, for sorting."""
    assert draft.reward is not None, "selectors only see drafts with a reward"
    return draft.reward
