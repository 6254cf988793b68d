"""Running the command: it gets the signals, its exit code is ours."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

from refine_wrapper.errors import RefineError

# What ends a run.
_STOPPING: Final = ("SIGINT", "SIGTERM", "SIGHUP")
# What trainers listen to: cluster managers announce the end of the allotted time with them. Kept, they would
# end *this* process.
_TELLING: Final = ("SIGUSR1", "SIGUSR2")


class CommandError(RefineError, OSError):
    """The command cannot be started."""


@dataclass(slots=True)
class Child:
    """The command, once or before it is started, and the signals for it.

    The first signal to stop is passed on, and the command has all the time it wants to end well. The second
    becomes SIGTERM, and every further one SIGKILL.
    """

    process: subprocess.Popen[bytes] | None = None
    stops: int = 0
    _early: list[int] = field(default_factory=list[int])

    @property
    def stopped(self) -> bool:
        """Whether somebody asked the command to stop."""
        return self.stops > 0

    def start(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start it, in our own process group: what the terminal sends to the group reaches it directly.

        Raises:
            CommandError: If there is no such command, or it cannot be executed.
        """
        executable = find_command(command)
        try:
            self.process = subprocess.Popen(list(command), executable=executable, env=dict(environ))
        except OSError as error:
            raise CommandError(f"refine: cannot start {command[0]!r}: {error.strerror}.") from None
        for number in self._early:
            self.receive(number)

    def wait(self) -> int:
        """Its exit code, as a shell gives it: 128 + signal if a signal ended it."""
        assert self.process is not None, "wait() is for a started command"
        code = self.process.wait()
        return 128 - code if code < 0 else code

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Pass a signal on. (A handler: it must neither block nor raise.)"""
        if self.process is None:
            self._early.append(number)
        elif signal.Signals(number).name in _TELLING:
            self.process.send_signal(number)
        else:
            self.stops += 1
            if self.stops == 1:
                # Ctrl-C reached the whole group; a second SIGINT would interrupt the command's clean-up.
                if not (number == signal.SIGINT and _in_foreground()):
                    self.process.send_signal(number)
            else:
                self.process.send_signal(signal.SIGTERM if self.stops == 2 else signal.SIGKILL)


def find_command(command: Sequence[str]) -> str:
    """The file to execute.

    Raises:
        CommandError: If there is none.
    """
    executable = shutil.which(command[0])
    if executable is not None:
        return executable
    hint = ""
    if os.path.isfile(command[0]):
        hint = " It is a file that may not be executed."
        if command[0].endswith(".py"):
            hint += f" Did you mean: python {shlex.join(command)}"
    raise CommandError(f"refine: {command[0]}: command not found.{hint}")


@contextlib.contextmanager
def forwarded_signals() -> Generator[Child]:
    """A command to start; meanwhile it gets the signals that this process gets."""
    child = Child()
    previous: dict[int, Any] = {}
    for name in (*_STOPPING, *_TELLING):
        number = getattr(signal, name, None)
        # Ignored signals stay ignored, here and in the command: nohup relies on it.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, child.receive)
    try:
        yield child
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether this process group is the one that the terminal sends Ctrl-C to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
