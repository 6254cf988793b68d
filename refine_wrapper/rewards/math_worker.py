"""The process that :mod:`refine_wrapper.rewards.math_process` starts, given the time limit in seconds and its own id.

One JSON array per line asks: ``[gold, answer]``; the reply is whether they are equal, or null if the gold one cannot
be read. It ends when an answer takes too long, and when its input or its starter ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import logging
import os
import signal
import sys
import threading
import time
from decimal import Decimal
from importlib import import_module
from itertools import chain
from typing import Any, Final

from refine_wrapper.rewards.math_notation import comparisons, notation, readings

LEAST_DIGITS: Final = 6
"""Significant digits that a decimal must have to stand for a number that it is not exactly: 0.333333 for 1/3."""

_MEMORY_LIMIT = 4 << 30
_STARTUP_SECONDS = 120.0  # importing sympy from a cold network disk, on a loaded machine


def main(limit: float, starter: int) -> None:
    """Answer until the input ends."""
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints goes elsewhere
    # A thread of C, which ends this process also where Python runs no handler and the starter is gone.
    faulthandler.dump_traceback_later(_STARTUP_SECONDS, exit=True)
    # A fork of the starter holds our input open too, so that its end alone would not tell.
    threading.Thread(target=_end_with, args=[starter], daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the starter decides
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        _math_verify()
        check("x = 1", "x = 2")  # the first use of parser and solver takes a second, which is no answer's fault
        reply: Any = "ready"
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    faulthandler.cancel_dump_traceback_later()
    os.write(replies, json.dumps(reply).encode() + b"\n")
    for line in sys.stdin.buffer:
        faulthandler.dump_traceback_later(limit, exit=True)
        reply = check(*json.loads(line))
        faulthandler.cancel_dump_traceback_later()
        os.write(replies, json.dumps(reply).encode() + b"\n")


@functools.lru_cache(maxsize=8192)
def check(gold: str, answer: str) -> bool | None:
    """Whether the answer equals the gold one; None if the gold one cannot be read."""
    try:
        if not _read(notation(gold)):
            return None
        _, verify = _math_verify()
        if gold == answer:
            return True
        return any(verify(_read(right), _read(given), timeout_seconds=0) for right, given in comparisons(gold, answer))
    except Exception:  # sympy raises anything, MemoryError and RecursionError too: no equality was shown
        return False


@functools.lru_cache(maxsize=1024)
def _read(answer: str) -> list[Any]:
    parse, _ = _math_verify()
    results = (parse(text) for text in readings(answer) if answer)
    nothing: list[Any] = []
    first = next(results, nothing)
    # The parser falls back on text (a list of one string); that counts only where nothing is mathematics.
    return next((read for read in chain([first], results) if any(not isinstance(part, str) for part in read)), first)


@functools.cache
def _math_verify() -> tuple[Any, Any]:
    library: Any = import_module("math_verify")
    grader: Any = import_module("math_verify.grader")
    # Its list of units has single letters, so that `5t` would be 5. The other settings are its defaults.
    settings = import_module("latex2sympy2_extended").NormalizationConfig(malformed_operators=True, nits=True)
    latex = library.LatexExtractionConfig(boxed_match_priority=0, normalization_config=settings)
    # Its tolerance is absolute: 1e-7 equals 2e-7, 1/2004! equals 1/2006! (huggingface/Math-Verify#14, #21). It compares
    # what is in sets, intervals and matrices by the same function, so that one is replaced, in a process of our own.
    grader.sympy_numeric_eq = functools.partial(numbers_equal, grader.sympy_numeric_eq, grader.sympy_symbolic_eq)
    # Its own timeouts are off: a signal handler cannot interrupt one huge power, ending the process can.
    configurations = [latex, library.ExprExtractionConfig()]
    return functools.partial(library.parse, extraction_config=configurations, parsing_timeout=0), library.verify


def numbers_equal(theirs: Any, symbolic: Any, gold: Any, answer: Any, *settings: Any) -> bool:
    """Exact for exact numbers; a decimal stands for what rounds to it, if it has digits enough."""
    sympy = import_module("sympy")
    if not isinstance(gold, sympy.Expr) or not isinstance(answer, sympy.Expr):
        return theirs(gold, answer, *settings)  # matrices: element by element, by this function
    sides = gold.doit(), answer.doit()
    exact = [side.xreplace({f: sympy.Rational(str(f)) for f in side.atoms(sympy.Float)}) for side in sides]
    if not all(side.is_number for side in exact):
        return symbolic(*exact)
    if all(side.is_Rational for side in exact):
        equal = exact[0] == exact[1]
    else:  # forty digits of what is compared
        equal = bool(abs(sympy.N(exact[0] - exact[1], 50)) < abs(sympy.N(exact[0], 50)) / 10**40)
    return equal or _rounds_to(exact[0], sides[1]) or _rounds_to(exact[1], sides[0])


def _rounds_to(number: Any, decimal: Any) -> bool:
    sympy = import_module("sympy")
    if not isinstance(decimal, sympy.Float):
        return False
    written = Decimal(str(decimal)).normalize()
    unit = sympy.Integer(10) ** written.as_tuple().exponent
    enough = len(written.as_tuple().digits) >= LEAST_DIGITS
    return enough and bool(abs(sympy.N(number - sympy.Rational(str(written)), 50)) <= unit / 2)


def _end_with(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(1)
    os._exit(0)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the starter is gone
        main(float(sys.argv[1]), int(sys.argv[2]))
