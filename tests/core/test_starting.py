"""What tests of hosts repeat: a run that the machine killed at its start, once. (tests/support/refine_testing/starting.py)"""

from __future__ import annotations

from pathlib import Path

import pytest
from refine_testing.starting import REPEATS_VARIABLE, killed_at_start, repeated_at_start

RAY = "Exception: The current node timed out during startup. This could happen because some of the raylet failed"


@pytest.fixture
def repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "repeats.txt"
    monkeypatch.setenv(REPEATS_VARIABLE, str(file))
    return file


@pytest.mark.parametrize(
    ("code", "screen", "begun", "why"),
    [
        (1, RAY, False, "The current node timed out during startup"),
        (1, "TimeoutError: Timed out after 30 seconds while waiting for node to startup. Did not find", False, "Timed"),
        (1, "IOError: [RayletClient] Unable to register worker with raylet. Broken pipe", False, "Unable to register"),
        (1, "See root cause above. Failed core proc(s): {'EngineCore_0': -9}", False, "Failed core proc"),
        (-9, "", False, "killed (exit code -9)"),
        (137, "", False, "killed (exit code 137)"),
        # It had begun: whatever happened is a result.
        (1, RAY, True, ""),
        (-9, "", True, ""),
        # It went well, or went wrong by itself.
        (0, RAY, False, ""),
        (1, "AssertionError: the trained rows differ", False, ""),
        (1, "See root cause above. Failed core proc(s): {'EngineCore_0': 1}", False, ""),
    ],
)
def test_what_counts_as_killed_at_start(code: int, screen: str, begun: bool, why: str) -> None:
    found = killed_at_start(code, screen, begun=begun)
    assert found.startswith(why)
    assert bool(found) is bool(why)


def test_a_run_that_was_killed_at_its_start_is_repeated_once_and_noted(
    repeats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    screens = [RAY, RAY, "never reached"]
    result = repeated_at_start(
        lambda attempt: screens[attempt], lambda screen: killed_at_start(1, screen, begun=False), "grpo"
    )
    assert result is screens[1]  # killed again: that is the result
    assert repeats.read_text() == "grpo: The current node timed out during startup\n"
    assert "grpo: The current node timed out during startup" in capsys.readouterr().err


def test_a_run_that_was_not_killed_is_not_repeated(repeats: Path) -> None:
    attempts: list[int] = []
    repeated_at_start(attempts.append, lambda result: "", "grpo")
    assert attempts == [0]
    assert not repeats.exists()


def test_a_failed_assertion_is_never_repeated(repeats: Path) -> None:
    attempts: list[int] = []

    def run(attempt: int) -> str:
        attempts.append(attempt)
        raise AssertionError(RAY)

    with pytest.raises(AssertionError):
        repeated_at_start(run, lambda screen: killed_at_start(1, screen, begun=False), "grpo")
    assert attempts == [0]
    assert not repeats.exists()
