"""Dynamic sampling recomputed from what a reward function was asked: which rows a batch must have in the end.

The oracle is independent of the package: it knows that groups of equal rewards are drawn again, all in one call, in their
order, until none is left or the limit is reached, and that a group keeps its first draw if no other had a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from refine_testing.rewards import RecordingReward, checksum, text_of
from refine_testing.trl_host import Recorded

Pay = Callable[[str, str, dict[str, Any]], "float | None"]
"""(prompt as text, completion as text, columns of the row) -> reward."""


def flat_for(*numbers: int) -> Pay:
    """Nothing to learn for questions of these numbers: always 0.5. For others the checksum of the completion."""
    return lambda prompt, text, columns: 0.5 if columns["number"] in numbers else checksum(text)


@dataclass
class PayingReward(RecordingReward):
    """Records, and pays by a rule."""

    pay: Pay = lambda prompt, text, columns: checksum(text)
    __name__: str = "paying_reward"

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        super().__call__(prompts, completions, **columns)
        return self.paid(self.calls[-1])

    def paid(self, call: dict[str, Any]) -> list[float | None]:
        """What a recorded call was paid."""
        return [
            self.pay(text_of(prompt), text_of(completion), row_of(call, row))
            for row, (prompt, completion) in enumerate(zip(call["prompts"], call["completions"], strict=True))
        ]


def row_of(call: dict[str, Any], row: int) -> dict[str, Any]:
    """Everything a call had for one row."""
    return {name: values[row] for name, values in call.items()}


@dataclass
class Merged:
    """One generation batch after dynamic sampling.

    Attributes:
        both: The rows that are trained, all ranks' in order; drafts are empty in a plain run.
        calls: Every call of the reward function for this batch.
        inactive: Groups without a gradient at the first draw.
        kept: Those of them that stayed.
        rounds: Further draws.
        groups: Groups drawn in them.
    """

    both: Recorded
    calls: list[dict[str, Any]]
    inactive: list[int]
    kept: list[int] = field(default_factory=list)
    rounds: int = 0
    groups: int = 0


def merged(
    calls: Sequence[dict[str, Any]],
    paid: Callable[[dict[str, Any]], list[float | None]],
    *,
    group_size: int,
    limit: int,
    num_drafts: int = 0,
    multiple: int = 1,
) -> list[Merged]:
    """The batches of a run. ``multiple``: candidates come in multiples of it, the open groups in turn."""
    left, found = list(calls), list[Merged]()
    while left:
        drafts, refinements = _take(left, num_drafts)
        rewards = paid(refinements)
        batch = Merged(
            Recorded(_copy(drafts), _copy(refinements), paid(drafts) if num_drafts else [], rewards),
            [drafts, refinements] if num_drafts else [refinements],
            [n for n, active in enumerate(_active(rewards, group_size)) if not active],
        )
        batch.kept = list(batch.inactive)
        while batch.kept and batch.rounds < limit:
            drafts, refinements = _take(left, num_drafts)
            batch.calls += [drafts, refinements] if num_drafts else [refinements]
            active = _active(paid(refinements), group_size)
            number = -(-len(batch.kept) // multiple) * multiple
            assert len(active) == number, f"{len(active)} groups were drawn again, {len(batch.kept)} had no gradient"
            places = [batch.kept[n % len(batch.kept)] for n in range(number)]
            for candidate, place in enumerate(places):
                if active[candidate] and place in batch.kept:
                    _put(batch.both.refinements, refinements, place, candidate, group_size)
                    if num_drafts:
                        _put(batch.both.drafts, drafts, place, candidate, num_drafts)
                    batch.kept.remove(place)
            batch.both.rewards = paid(batch.both.refinements)
            batch.both.draft_rewards = paid(batch.both.drafts) if num_drafts else []
            batch.rounds += 1
            batch.groups += number
        found.append(batch)
    return found


def _take(left: list[dict[str, Any]], num_drafts: int) -> tuple[dict[str, Any], dict[str, Any]]:
    drafts: dict[str, Any] = left.pop(0) if num_drafts else {}
    refinements = left.pop(0)
    return drafts, refinements


def _active(rewards: Sequence[float | None], group_size: int) -> list[bool]:
    assert len(rewards) % group_size == 0
    groups = [rewards[first : first + group_size] for first in range(0, len(rewards), group_size)]
    return [len({reward for reward in group if reward is not None}) > 1 for group in groups]


def _copy(call: dict[str, Any]) -> dict[str, Any]:
    return {name: list(values) for name, values in call.items()}


def _put(into: dict[str, Any], source: dict[str, Any], place: int, candidate: int, size: int) -> None:
    for name in into:
        into[name][place * size : (place + 1) * size] = source[name][candidate * size : (candidate + 1) * size]
