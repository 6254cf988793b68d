"""Signals, on the real command line with real processes."""

from __future__ import annotations

import os
import pty
import signal
import sys
from typing import Any

import pytest

WAIT = "print('ready', os.getpid(), flush=True)\nwhile True: time.sleep(60)\n"
# Handlers write past print(), which may be at work itself when the signal comes, and cannot be entered twice.
COUNTING = """
import os, signal, sys, time
for name in {names!r}:
    signal.signal(getattr(signal, name), lambda number, _: os.write(1, (signal.Signals(number).name + chr(10)).encode()))
"""


def _ready(process: Any) -> int:
    """Wait for the command; its process id."""
    word, _, pid = process.stdout.readline().partition(" ")
    assert word == "ready"
    return int(pid)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_command_is_stopped_and_its_end_is_ours(project: Any, name: str, code: int) -> None:
    script = project.write("work/wait.py", f"import os, time\n{WAIT}")
    with project.started(sys.executable, str(script)) as process:
        pid = _ready(process)
        process.send_signal(getattr(signal, name))
        assert process.wait(30) == code
        assert _gone(pid)
    assert list(project.temporary.iterdir()) == []


def test_a_command_that_ends_well_when_interrupted_is_no_failure(project: Any) -> None:
    script = project.write(
        "work/wait.py",
        "import os, time\n"
        "try:\n"
        "    print('ready', os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('saved')\n",
    )
    with project.started(sys.executable, str(script)) as process:
        _ready(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read() == "saved\n"


def test_only_a_second_signal_is_harder(project: Any) -> None:
    names = ("SIGINT", "SIGTERM")
    script = project.write("work/wait.py", COUNTING.format(names=names) + WAIT)
    with project.started(sys.executable, str(script)) as process:
        pid = _ready(process)
        for expected in names:
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == f"{expected}\n"
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 137
        assert _gone(pid)
    assert list(project.temporary.iterdir()) == []


def test_what_a_cluster_manager_announces_reaches_the_command(project: Any) -> None:
    script = project.write("work/wait.py", COUNTING.format(names=("SIGUSR1", "SIGUSR2")) + WAIT)
    with project.started(sys.executable, str(script)) as process:
        _ready(process)
        for name in ("SIGUSR1", "SIGUSR2", "SIGUSR1"):
            process.send_signal(getattr(signal, name))
            assert process.stdout.readline() == f"{name}\n"
        process.terminate()
        assert process.wait(30) == 143


def test_control_c_in_a_terminal_reaches_the_command_once(project: Any) -> None:
    script = project.write(
        "work/wait.py",
        "import os, signal, sys, time\n"
        "seen = []\n"
        "def interrupted(*_):\n"
        "    seen.append(1)\n"
        "    os.write(1, b'interrupted' + bytes([10]))\n"
        "signal.signal(signal.SIGINT, interrupted)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))\n" + WAIT,
    )
    terminal, its_end = pty.openpty()
    try:
        with project.started(sys.executable, str(script), stdin=its_end) as process:
            _ready(process)
            # `run` is held until the command has had its interrupt: two that are pending at once count as one.
            process.send_signal(signal.SIGSTOP)
            os.write(terminal, b"\x03")
            assert process.stdout.readline() == "interrupted\n"
            # Python handles pending signals by number, so an interrupt passed on would come before this one.
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGCONT)
            assert process.wait(30) == 0
            assert process.stdout.read() == ""
    finally:
        os.close(terminal)
        os.close(its_end)
