"""A real run that the machine killed at its start is repeated once, and the summary says so. Nothing else is repeated.

Several hosts start at once on a shared machine, and Ray and engines wait for their parts for a limited time. That says nothing
about refinement. What a run did after its start, and every assertion about it, counts the first time.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Final, TypeVar

REPEATS_VARIABLE: Final = "REFINE_TESTING_REPEATS"
"""Names a file that gets a line for each repetition: `make test` prints them at its end (tools/times.py)."""
T = TypeVar("T")

_SIGNS: Final = (
    # Ray's head (ray._private.node, ray._private.services) and its workers (the raylet client).
    "The current node timed out during startup",
    r"Timed out after .+ seconds while waiting for node to startup",
    "Unable to register worker with raylet",
    # vLLM's engine (vllm.v1.engine): a process of it was killed, or did not hear from the others in time.
    r"Failed core proc\(s\): \{[^}]*: -9\b",
    r"Did not receive response from front-end process within \d+ minutes",
)
_KILLED: Final = (-9, 137)
"""Exit codes of a command that was killed: by the kernel that ran out of memory, for no test kills one at its start."""


def killed_at_start(code: int, screen: str, *, begun: bool) -> str:
    """Why a command that ended was killed by the machine before it did anything, or nothing.

    Args:
        code: Its exit code; one of zero was not killed.
        screen: What it printed.
        begun: It did something that comes after its start: a step, a completion, a call of the reward.
    """
    if code == 0 or begun:
        return ""
    for sign in _SIGNS:
        if found := re.search(sign, screen):
            return found.group()
    return f"killed (exit code {code})" if code in _KILLED else ""


def repeated_at_start(run: Callable[[int], T], killed: Callable[[T], str], what: str) -> T:
    """Run; once more if the machine killed it at its start. What ``run`` raises is raised, and nothing is repeated.

    Args:
        run: Gets the number of the attempt, 0 or 1, so that each has a folder of its own.
        killed: Says of a result why it was killed at its start, or nothing (:func:`killed_at_start`).
        what: Name of the run, for the summary.
    """
    result = run(0)
    if why := killed(result):
        _note(f"{what}: {why}")
        return run(1)
    return result


def _note(line: str) -> None:
    print(f"Repeated once, for the machine killed it at its start: {line}", file=sys.stderr)
    file = os.environ.get(REPEATS_VARIABLE)
    if file:
        # One short write: runs of several threads and processes note theirs in the same file.
        with open(file, "a", encoding="utf-8") as repeats:
            repeats.write(line + "\n")
