"""What one agent loop run is for: the concrete loop must not know, the methods of the worker around it must.

A ContextVar, because veRL passes what ``_run_agent_loop`` gets on to the loop's ``run(**kwargs)``, and concrete loops
may reject arguments that they do not know. Each asyncio task has its own value.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from refine_wrapper.core.types import DraftOutcome, GroupPlan, Refinement, SampledDraft


@dataclass(slots=True)
class Group:
    """One group in this worker.

    Attributes:
        group_id: The same in a repeated run, unlike veRL's uid.
        num_members: G.
        question_ids: Token ids of q as the inner loop made them, from the first draft; None before.
        overhead: Tokens the inner loop adds to the conversation itself (tool schemas, images), from the same draft.
    """

    group_id: str
    num_members: int
    question_ids: list[int] | None = None
    overhead: int = 0


@dataclass(slots=True)
class Running:
    """One agent loop while it runs.

    Attributes:
        group: Its group.
        plan: What a refinement carries out; None for a draft.
        outputs: What the loop returned (``AgentLoopOutput``), once it is post-processed.
        masks: Their ``response_mask`` as the loop made it: 1 where the policy wrote.
    """

    group: Group
    plan: GroupPlan | None = None
    outputs: list[Any] = field(default_factory=list[Any])
    masks: list[list[int]] = field(default_factory=list[list[int]])

    def note(self, outputs: list[Any]) -> None:
        """Keep what the loop returned, before anything is changed in it."""
        self.outputs = list(outputs)
        self.masks = [list(output.response_mask) for output in outputs]

    @contextmanager
    def current(self) -> Generator[None]:
        """Be what :func:`running` returns, in this task and those it starts."""
        token = _RUNNING.set(self)
        try:
            yield
        finally:
            _RUNNING.reset(token)


# Module level because asyncio's contexts are keyed by the variable; it holds nothing outside of a running task.
_RUNNING: ContextVar[Running | None] = ContextVar("refine_wrapper_verl.running", default=None)


def running() -> Running | None:
    """The agent loop that runs in this task, if it belongs to a refined group."""
    return _RUNNING.get()


@dataclass(frozen=True, slots=True)
class Sample:
    """The core's view of what a loop returned: of several outputs the last, which is the one veRL scores."""

    text: str
    num_tokens: int
    finished: bool
    reward: float | None
    policy_version: int | str | None

    @classmethod
    def of(cls, loop: Running, tokenizer: Any, max_tokens: int) -> Sample:
        """Decode the policy's own tokens; what tools said is not the policy's."""
        last = loop.outputs[-1]
        own = [token for token, kept in zip(last.response_ids, loop.masks[-1], strict=True) if kept]
        ended = bool(last.response_ids) and last.response_ids[-1] == tokenizer.eos_token_id
        return cls(
            text=tokenizer.decode(own, skip_special_tokens=True),
            num_tokens=sum(map(sum, loop.masks)),
            finished=ended or len(last.response_ids) < max_tokens,
            reward=last.reward_score,
            policy_version=_version(last.extra_fields),
        )

    def draft(self, failure: DraftOutcome | None = None, detail: str = "") -> SampledDraft:
        """As one draft of Stage 1."""
        return SampledDraft(
            self.text, self.reward, self.num_tokens, self.finished, failure, detail, self.policy_version
        )

    def refinement(self) -> Refinement:
        """As one refinement of Stage 2."""
        return Refinement(self.text, self.reward, self.num_tokens, self.finished)


def _version(extra_fields: Any) -> int | str | None:
    """The weights that wrote it; ``2-3`` if they changed while it was written (partial rollout)."""
    first, last = extra_fields.get("min_global_steps"), extra_fields.get("max_global_steps")
    if first is None or last is None:
        return None
    return int(last) if first == last else f"{first}-{last}"
