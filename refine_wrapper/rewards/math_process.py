"""A process that compares answers for us: one that hangs or dies there costs a row, not the training run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from typing import Any, Literal

from refine_wrapper.errors import RefineError

Failure = Literal["timeout", "crash"]

_STARTUP_SECONDS = 120.0  # importing sympy from a cold network disk, on a loaded machine
_instances: weakref.WeakSet[MathProcess] = weakref.WeakSet()


class MathProcess:
    """Starts the process at the first question, ends it when an answer takes too long, and starts another.

    Threads may share it: one question is asked at a time. A fork gets a process of its own. The process ends
    with :meth:`close`, with this object, and with the interpreter.

    Args:
        timeout: Seconds that one answer may take.
    """

    def __init__(self, timeout: float) -> None:
        self.failures = 0
        """Questions so far that were not answered."""
        self._timeout = timeout
        self._forget()
        _instances.add(self)

    @property
    def pid(self) -> int | None:
        """Of the process that runs now, if one does."""
        return self._process.pid if self._process is not None else None

    def ask(self, **question: str) -> bool | Failure:
        """The answer, or why there is none.

        Raises:
            RefineError: If the process cannot be started at all.
        """
        with self._lock:
            # Killed from outside, say for memory: a second try shows whether this question was the reason.
            late = False
            for _ in range(2):
                process = self._process or self._start()
                reply, late = _exchange(process, question, self._timeout)
                if late or reply is None:
                    self._stop()
                if late:
                    break
                if reply is not None:
                    return bool(reply["result"])
            self.failures += 1
            return "timeout" if late else "crash"

    def close(self) -> None:
        """End the process. The next question starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        # -P (Python 3.11): a `random.py` in the current folder must not stand in for the standard library's.
        safe_path: list[str] = ["-P"] if sys.version_info >= (3, 11) else []
        # It finds the modules where we found them, also in what was added to sys.path while running.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        process = subprocess.Popen(
            [sys.executable, *safe_path, "-m", "refine_wrapper.rewards.math_worker", str(self._timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the parser writes its complaints about every malformed answer there
            bufsize=0,  # what a buffer still held, a fork that closes its copy would write a second time
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        )
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)
        reply, late = _exchange(process, None, _STARTUP_SECONDS)
        if late or reply is None or "error" in reply:
            self._stop()
            ended = "it took too long" if late else f"it ended with {process.returncode}"
            why = ended if reply is None else reply.get("error", ended)
            raise RefineError(f"refine: the process that runs math-verify cannot start: {why}")
        return process

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., MathProcess] | None = None

    def _after_fork(self) -> None:
        process, finalizer = self._process, self._finalizer
        self._forget()  # the lock too: another thread of our parent may hold it, and that thread is not here
        if process is not None and finalizer is not None:
            finalizer.detach()
            _close_pipes(process)  # so that our parent's end is the only one, and its death is seen
            process.returncode = 0  # it is not our child: Popen must neither wait for it nor warn about it


def _exchange(process: subprocess.Popen[bytes], question: Any, seconds: float) -> tuple[dict[str, Any] | None, bool]:
    """The reply, or None if the process died; and whether we ended it because it took too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    # A timer that ends the process, for a pipe cannot be read with a time limit on every platform.
    deadline = _Deadline(process, seconds)
    line = b""
    try:
        rest = b"" if question is None else json.dumps(question).encode() + b"\n"
        while rest:
            rest = rest[process.stdin.write(rest) or 0 :]
        line = process.stdout.readline()
    except OSError:
        pass
    except BaseException:  # Ctrl-C between question and reply: the next reader must not get this reply
        process.kill()
        raise
    finally:
        late = deadline.passed()
    return (json.loads(line) if line.endswith(b"\n") else None), late


class _Deadline:
    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._over = self._ended = False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def passed(self) -> bool:
        """Whether the process was ended. From now on it will not be."""
        self._timer.cancel()
        with self._lock:
            self._over = True
            return self._ended

    def _end(self) -> None:
        with self._lock:
            if not self._over:
                self._ended = True
                self._process.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    _close_pipes(process)
    process.wait()


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _forget_in_fork() -> None:
    for instance in list(_instances):
        instance._after_fork()  # pyright: ignore[reportPrivateUsage]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_fork)
