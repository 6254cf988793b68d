"""What `make test` prints at its end: the time of each session and of its ten slowest tests, and what was repeated."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

SLOWEST = 10
REPEATS_VARIABLE = "REFINE_TESTING_REPEATS"
"""Names the file in which tests note what they repeated (tests/support/refine_testing/starting.py)."""


@dataclass
class SessionTime:
    """What one session took.

    Attributes:
        name: Of the session.
        folder: Where its pytest leaves its files.
        seconds: From its start to its end.
        failed: It ended with an error.
        tests: Name and seconds of each test, set-up included; as far as pytest got to write them.
        repeats: What was repeated because the machine killed it at start-up, a line each.
    """

    name: str
    folder: Path
    seconds: float = 0.0
    failed: bool = False
    tests: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    repeats: list[str] = field(default_factory=list[str])

    @property
    def junit(self) -> Path:
        """For ``--junitxml``."""
        return self.folder / "junit.xml"

    @property
    def variables(self) -> Mapping[str, str]:
        """For the environment of pytest."""
        return {REPEATS_VARIABLE: str(self.folder / "repeats.txt")}

    def read(self) -> None:
        """Take over what pytest and the tests wrote; a session that was killed may have written nothing."""
        self.tests = read_junit(self.junit)
        noted = self.folder / "repeats.txt"
        self.repeats = noted.read_text(encoding="utf-8").splitlines() if noted.exists() else []


class Times:
    """The times of all sessions of this run, in the order in which they ran."""

    def __init__(self) -> None:
        self._sessions: list[SessionTime] = []

    @contextmanager
    def session(self, name: str, folder: Path) -> Generator[SessionTime]:
        """Measure a session, whatever becomes of it."""
        measured = SessionTime(name, folder)
        self._sessions.append(measured)
        started = time.monotonic()
        try:
            yield measured
        except BaseException:
            measured.failed = True
            raise
        finally:
            measured.seconds = time.monotonic() - started
            measured.read()

    def summary(self) -> str:
        """The text for the screen; empty if nothing ran."""
        if not self._sessions:
            return ""
        total = sum(session.seconds for session in self._sessions)
        lines = ["", f"Times: {_minutes(total)} in all (environments and wheel not counted)"]
        for session in self._sessions:
            lines.append(f"{_minutes(session.seconds)}  {session.name}{'  FAILED' if session.failed else ''}")
            slowest = sorted(session.tests, key=lambda test: -test[1])[:SLOWEST]
            lines += [f"{seconds:>18.1f} s  {test}" for test, seconds in slowest if seconds >= 0.05]
            lines += [f"{'repeated once':>20}  {line}" for line in session.repeats]
        return "\n".join(lines) + "\n"


def read_junit(junit: Path) -> list[tuple[str, float]]:
    """Name and seconds of the tests in a JUnit file; none if there is no whole one."""
    try:
        cases = ElementTree.parse(junit).getroot().iter("testcase")
    except (OSError, ElementTree.ParseError):
        return []
    return [(f"{case.get('classname', '')}::{case.get('name', '')}", float(case.get("time") or 0)) for case in cases]


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60:>4} min {int(seconds) % 60:>2} s"
