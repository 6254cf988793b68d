"""The order of waiting requests in a rollout engine: vLLM's own scheduling by priority, which OpenRLHF leaves off."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from contextvars import ContextVar
from functools import partial
from typing import Any

# A context variable, because upstream's executor and actor stand between a call and the engine's request.
_priority: ContextVar[int] = ContextVar("priority", default=0)
"""Of the requests that the current task makes: lower is earlier. Only matters while requests wait for a slot."""


@contextlib.contextmanager
def at_priority(priority: int) -> Generator[None]:
    """Requests that are made in here, by this task, have this priority; others have 0."""
    before = _priority.set(priority)
    try:
        yield
    finally:
        _priority.reset(before)


def schedule_by_priority() -> None:
    """Have the vLLM engine of this process, not yet built, order waiting requests by priority; equal ones by arrival.

    OpenRLHF makes the executor in the actor, before it builds the engine there, and has no flag for the policy.
    Idempotent.
    """
    vllm: Any = sys.modules.get("vllm")
    if vllm is not None and not isinstance(vllm.AsyncEngineArgs, partial):
        vllm.AsyncEngineArgs = partial(vllm.AsyncEngineArgs, scheduling_policy="priority")


def take_priorities(actor: Any) -> None:
    """Have the engine of a rollout actor give each request the priority of its task. Idempotent.

    Does nothing where the engine has no such policy: then requests are served in the order they come.
    """
    engine = getattr(actor, "llm", None)
    scheduler = getattr(getattr(engine, "vllm_config", None), "scheduler_config", None)
    if engine is None or getattr(scheduler, "policy", None) != "priority":
        return
    if getattr(engine.generate, "takes_priorities", False):
        return
    generate = engine.generate

    def generate_in_order(*arguments: Any, **named: Any) -> Any:
        return generate(*arguments, **{"priority": _priority.get(), **named})

    generate_in_order.takes_priorities = True  # pyright: ignore[reportFunctionMemberAccess]
    engine.generate = generate_in_order
