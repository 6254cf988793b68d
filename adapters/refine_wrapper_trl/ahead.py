"""Draft-ahead: one generation call holds the refinements of this batch and the drafts of the next one.

Two calls of half the rows take nearly twice the decoding steps of one call with all rows. So the drafts of the next
batch are prefetched: when the host asks for the completions of its q', their prompts are put behind. What comes back
for them is handed to the host when it asks for those drafts itself. Everything else (parsing, tools, scoring,
metrics) is the host's own code for each stage, as without it. The drafts are one generation batch old by then; they
are context only, never trained.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from typing import Any

from refine_wrapper_trl.isolate import replaced
from refine_wrapper_trl.rows import Rows


class Lookahead:
    """An iterator over the batches of an epoch that can be asked for one which it has not handed out yet."""

    def __init__(self, batches: Iterator[Rows]) -> None:
        self.batches = batches
        self._handed: list[Rows] = []
        self._ahead: deque[Rows] = deque()

    def __iter__(self) -> Iterator[Rows]:
        return self

    def __next__(self) -> Rows:
        batch = self._ahead.popleft() if self._ahead else next(self.batches)
        self._handed.append(batch)
        return batch

    def start_step(self) -> None:
        """Forget what was handed out for the last optimizer step."""
        self._handed.clear()

    def after(self, batch: Rows, distance: int, *, left: int) -> Rows | None:
        """The batch that comes ``distance`` batches after one of this optimizer step.

        Args:
            batch: One that was handed out for this step.
            distance: 1 is the next one.
            left: How many batches the training takes from the start of this step on.

        Returns:
            None at the end of the epoch or of the training.
        """
        position = next((i for i, handed in enumerate(self._handed) if handed is batch), None)
        if position is None or position + distance >= left:
            return None
        missing = position + distance - len(self._handed)
        while len(self._ahead) <= missing:
            try:
                self._ahead.append(next(self.batches))
            except StopIteration:
                return None
        return self._ahead[missing] if missing >= 0 else self._handed[position + distance]


@dataclass(frozen=True)
class Prefetched:
    """What a generation call brought for drafts of the next batch.

    Attributes:
        prompt_ids: Token ids of q, one row per draft.
        sampled: What the host's ``_generate_single_turn`` returned for these rows: a list per row, or a tuple of such.
        policy_version: The optimizer step at which they were sampled.
    """

    prompt_ids: list[list[int]]
    sampled: Any
    policy_version: int


@contextmanager
def prefetching(
    trainer: Any, group_size_name: str, repeat: int, draft_prompt_ids: list[list[int]]
) -> Generator[list[Prefetched]]:
    """Put drafts behind the rows of the host's next ``_generate_single_turn``; the list then holds what they got.

    Args:
        trainer: The TRL trainer.
        group_size_name: Its attribute that holds the group size.
        repeat: The drafts' prompts come in runs of a multiple of this, over all ranks.
        draft_prompt_ids: Token ids of q, one row for each of this rank's drafts.
    """
    found: list[Prefetched] = []
    host: Callable[..., Any] = trainer._generate_single_turn
    group_size = getattr(trainer, group_size_name)

    def both(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        # Later calls of the same batch go on after a tool call; inputs beside text (args: images, fields) are per row.
        if found or any(args[:2]):
            return host(prompt_ids, *args, **kwargs)
        # vLLM gets each prompt once and samples it that often: the most that divides both kinds of groups, and the
        # shares of each rank, whose rows stand between those of others when they are gathered (vLLM's server mode).
        shared = gcd(group_size, repeat, len(prompt_ids), len(draft_prompt_ids))
        if len(args) > 2 and args[2] == group_size:  # GRPO hands it over since TRL 1.16
            args = (*args[:2], shared, *args[3:])
        with replaced(trainer, group_size_name, shared):
            sampled = host([*prompt_ids, *draft_prompt_ids], *args, **kwargs)
        own, drafts = _split(sampled, len(prompt_ids))
        found.append(Prefetched(draft_prompt_ids, drafts, int(trainer.state.global_step)))
        return own

    with replaced(trainer, "_generate_single_turn", both):
        yield found


@contextmanager
def prefetched(trainer: Any, drafts: Prefetched) -> Generator[None]:
    """Answer the host's first ``_generate_single_turn`` with what was sampled for the same prompts before."""
    host: Callable[..., Any] = trainer._generate_single_turn
    left = [drafts]

    def serve(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if left and [list(ids) for ids in prompt_ids] == left[0].prompt_ids:
            return left.pop().sampled
        return host(prompt_ids, *args, **kwargs)

    with replaced(trainer, "_generate_single_turn", serve):
        yield


def _split(sampled: Any, first: int) -> tuple[Any, Any]:
    """What one call returned for its first rows and for the rest."""
    if isinstance(sampled, tuple):
        halves = [_split(part, first) for part in sampled]
        return tuple(own for own, _ in halves), tuple(other for _, other in halves)
    return (None, None) if sampled is None else (sampled[:first], sampled[first:])
