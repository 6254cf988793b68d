"""Processes that compare answers for us: one that hangs or dies costs a row, not the training run."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from typing import Any, Final, Literal

from refine_wrapper.errors import RefineError

Failure = Literal["timeout", "crash"]

PROCESSES: Final = max(2, min(4, os.cpu_count() or 1))
"""At most so many run at once: while one hangs, the others go on."""

_WORKER = "refine_wrapper.rewards.math_worker"


class MathProcesses:
    """Starts a process when a question finds none free, and another after one that took too long.

    Threads may share it. A fork gets processes of its own. They end with :meth:`close`, with this object, and
    with the interpreter.

    Args:
        timeout: Seconds that one answer may take, once it is its turn.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._forget()

    def ask(self, gold: str, answer: str) -> bool | Failure | None:
        """Whether the answer equals the gold one, None if the gold one cannot be read, or why there is no reply.

        Raises:
            RefineError: If no process can be started at all.
        """
        if self._owner != os.getpid():  # a fork, without its parent's threads and with no right to its processes
            self._forget()
        line, process = b"", self._free.get()  # the one used last: who asks one question at a time needs one process
        try:
            # Killed from outside, say for memory: a second try shows whether this question was the reason.
            for _ in range(2):
                process = process or self._start()
                started = time.monotonic()
                line = _exchange(process, json.dumps([gold, answer]))
                if line:
                    return json.loads(line)
                process = self._stop(process)
                if time.monotonic() - started >= self._timeout:
                    return "timeout"
            return "crash"
        finally:  # Ctrl-C between question and reply: the next reader must not get this reply
            self._free.put(process if line or process is None else self._stop(process))

    def close(self) -> None:
        """End the processes, once none of them compares. The next question starts another."""
        with self._lock:
            for process in [self._free.get() for _ in range(PROCESSES)]:
                self._free.put(process and self._stop(process))

    def __reduce__(self) -> tuple[type[MathProcesses], tuple[float]]:
        return MathProcesses, (self._timeout,)  # who unpickles it starts processes of its own

    def _start(self) -> subprocess.Popen[bytes]:
        # -P (Python 3.11): a `random.py` in the current folder must not stand in for the standard library's.
        safe_path: list[str] = ["-P"] if sys.version_info >= (3, 11) else []
        # It finds the modules where we found them, also in what was added to sys.path while running.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        process = subprocess.Popen(
            [sys.executable, *safe_path, "-m", _WORKER, str(self._timeout), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the parser writes its complaints about every malformed answer there
            bufsize=0,  # what a buffer still held, a fork that closes its copy would write a second time
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        )
        self._running.add(process)
        reply: Any = json.loads(_exchange(process) or "null")
        if reply != "ready":
            self._stop(process)
            why = reply["error"] if reply else f"it ended with {process.returncode}"
            raise RefineError(
                f"refine: the process that runs math-verify cannot start: {why}. "
                "Is it installed? pip install 'refine-wrapper[math]'"
            )
        return process

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        self._running.discard(process)
        _end({process}, self._owner)

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._free: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(PROCESSES):
            self._free.put(None)
        weakref.finalize(self, _end, self._running, self._owner)


def _exchange(process: subprocess.Popen[bytes], question: str = "") -> bytes:
    """The line that it replies, or nothing if it died, also because it took too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        rest = question.encode() + b"\n" if question else b""
        while rest:
            rest = rest[process.stdin.write(rest) or 0 :]
        line = process.stdout.readline()
    except OSError:
        return b""
    return line if line.endswith(b"\n") else b""


def _end(processes: set[subprocess.Popen[bytes]], owner: int) -> None:
    for process in processes:
        if owner == os.getpid():
            process.kill()
        else:  # we are a fork of the owner: Popen must neither wait for its child nor warn about it
            process.returncode = 0
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()
