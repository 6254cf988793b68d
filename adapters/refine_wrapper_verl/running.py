"""What one agent loop run is for: the concrete loop must not know, the methods of the worker around it must.

A ContextVar, because veRL passes what ``_run_agent_loop`` gets on to the loop's ``run(**kwargs)``, and concrete loops
reject arguments that they do not know. It holds one frozen value, and each asyncio task has its own.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from refine_wrapper.core.rollout import Member
from refine_wrapper.core.types import GroupId, PlannedRound


@dataclass(frozen=True, slots=True)
class Kept:
    """A context sample that may take a slot later.

    Attributes:
        output: What its loop returned, scored.
        on_question: The prompt ids of its outputs with q in the place of q'.
    """

    output: Any
    on_question: list[list[int]]


@dataclass(slots=True)
class GroupHere:
    """One group while this worker samples it.

    Attributes:
        id: The same in a repeated run, unlike veRL's uid.
        num_slots: S, its rows.
        question_ids: Token ids of q as the inner loop made them, from the first sample on q; None before.
        kept: Index of a context sample -> its output, in modes whose samples may take slots.
        error: What ended its rounds, if anything did.
    """

    id: GroupId
    num_slots: int
    question_ids: list[int] | None = None
    kept: dict[int, Kept] = field(default_factory=dict[int, Kept])
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class LoopRun:
    """One run of an agent loop.

    Attributes:
        group: The group that it samples for.
        question: q, with turns that no other row has.
        planned: The round that it belongs to.
        member: The member of the group whose slot it fills; None: it samples context.
        index: Of the sample in its group, where it is context.
    """

    group: GroupHere
    question: Any
    planned: PlannedRound
    member: Member | None = None
    index: int = -1

    @contextmanager
    def current(self) -> Generator[None]:
        """Be what :func:`current_run` returns, in this task and those it starts."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


# Module level because asyncio's contexts are keyed by the variable; it holds nothing outside of a running task.
_CURRENT: ContextVar[LoopRun | None] = ContextVar("refine_wrapper_verl.current_run", default=None)


def current_run() -> LoopRun | None:
    """The run that this task belongs to, if it samples for a refined group."""
    return _CURRENT.get()
