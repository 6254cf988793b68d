"""What `make test` prints at its end. (tools/times.py)"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from refine_testing.starting import REPEATS_VARIABLE

from times import Times, read_junit

JUNIT = (
    '<testsuites><testsuite name="pytest">'
    + "".join(f'<testcase classname="tests.core.test_x" name="test_{n}" time="{n}.25"/>' for n in range(12))
    + "</testsuite></testsuites>"
)


def test_sessions_their_slowest_tests_and_repetitions_are_shown(tmp_path: Path) -> None:
    times = Times()
    assert times.summary() == ""
    with times.session("core", tmp_path) as session:
        session.junit.write_text(JUNIT)
        Path(session.variables[REPEATS_VARIABLE]).write_text("grpo: killed (exit code -9)\n")
    text = times.summary()
    shown = [line.split()[-1].removeprefix("tests.core.test_x::") for line in text.splitlines() if "::" in line]
    assert shown == [f"test_{n}" for n in range(11, 1, -1)]
    assert "  11.2 s  tests.core.test_x::test_11" in text
    assert "repeated once  grpo: killed (exit code -9)" in text
    assert "0 min  0 s  core\n" in text


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_session_that_fails_is_shown_too(tmp_path: Path, error: type[BaseException]) -> None:
    times = Times()
    (tmp_path / "junit.xml").write_text(JUNIT)
    with pytest.raises(error), times.session("core", tmp_path):
        raise error
    assert "core  FAILED\n" in times.summary()
    assert "test_x::test_11" in times.summary()


@pytest.mark.parametrize("text", [None, "", '<testsuites><testsuite name="pytest"><testcase'])
def test_a_session_that_was_killed_has_no_times_of_tests(tmp_path: Path, text: str | None) -> None:
    junit = tmp_path / "junit.xml"
    if text is not None:
        junit.write_text(text)
    assert read_junit(junit) == []
