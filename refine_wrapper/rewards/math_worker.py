"""The process that :mod:`refine_wrapper.rewards.math_process` starts, given the time limit in seconds.

One JSON object per line, both ways. ``{"gold": g}`` asks whether g can be read, ``{"gold": g, "answer": a}``
whether a equals it. It ends when its input does, that is when the process that started it ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
from typing import Any

from refine_wrapper.rewards.math_notation import readings

_MEMORY_LIMIT = 4 << 30
# Seconds that the starter has to end this process before it ends itself.
_GRACE = 2.0


def main() -> None:
    """Answer until the input ends."""
    # Replies have the pipe for themselves: what a library prints goes elsewhere.
    replies = os.dup(1)
    os.dup2(2, 1)
    limit = float(sys.argv[1])
    _prepare()
    try:
        _parse_functions()
    except Exception as error:
        _reply(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    _reply(replies, {"ready": True})
    for line in sys.stdin.buffer:
        _alarm(limit + _GRACE)
        reply = {"result": check(**json.loads(line))}
        _alarm(0)
        _reply(replies, reply)


def check(gold: str, answer: str | None = None) -> bool:
    """Whether the answer equals the gold one; without an answer, whether the gold one can be read."""
    try:
        right = _read(gold)
        if answer is None or not right:
            return bool(right)
        _, verify = _parse_functions()
        return bool(verify(right, _read(answer), timeout_seconds=None))
    except Exception:  # sympy raises anything, MemoryError and RecursionError too: no equality was shown
        return False


@functools.lru_cache(maxsize=1024)
def _read(answer: str) -> list[Any]:
    parse, _ = _parse_functions()
    results = [parse(text) for text in readings(answer)]
    # The parser falls back on text (a list of one string); that counts only where nothing was mathematics.
    return next((result for result in results if any(not isinstance(r, str) for r in result)), results[0])


@functools.cache
def _parse_functions() -> tuple[Any, Any]:
    import math_verify as library  # pyright: ignore

    module: Any = library
    configurations = [module.LatexExtractionConfig(boxed_match_priority=0), module.ExprExtractionConfig()]
    # Its own timeouts are off: a signal handler cannot interrupt one huge power, ending the process can.
    parse = functools.partial(module.parse, extraction_config=configurations, parsing_timeout=None)
    return parse, module.verify


def _prepare() -> None:
    logging.disable(logging.CRITICAL)
    # Ctrl-C reaches the whole process group; what it means is for the starter to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY or soft > _MEMORY_LIMIT:
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, hard))


def _alarm(seconds: float) -> None:
    # The kernel ends this process even where Python runs no handler and the starter is gone.
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _reply(pipe: int, reply: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the starter is gone; the input ends next
        os.write(pipe, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
