"""The judge with the real `openai` client, against a server that misbehaves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from refine_testing.judge_server import Fault, JudgeServer, judge_server, quoted

from refine_wrapper.errors import ConfigError
from refine_wrapper.rewards.judge import JudgeReward


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as server:
        yield server


@pytest.fixture
def judge(server: JudgeServer, tmp_path: Path) -> Iterator[JudgeReward]:
    judge = JudgeReward(model="m", base_url=server.url, cache=tmp_path / "judge.sqlite", retries=2, patience=20)
    assert judge(prompts=["q"], completions=["works"]) == [0.5]
    yield judge
    judge.close()


def _one(judge: JudgeReward, completion: str = "seven!!") -> tuple[float | None, str]:
    reasons: dict[str, Any] = {}
    [reward] = judge(prompts=["q"], completions=[completion], log_extra=reasons.__setitem__)
    return reward, reasons["judge_failure"][0]


def _first(*faults: Fault) -> Any:
    """The first times that a request comes these faults, then none."""
    return lambda request, before: faults[before] if before < len(faults) else None


def test_a_rate_limit_is_waited_for(judge: JudgeReward, server: JudgeServer) -> None:
    server.fault = _first(Fault(429, {"retry-after": "2"}), Fault(429, {"retry-after-ms": "1500"}))
    assert _one(judge) == (0.7, "")
    times = [when for when, _ in server.asked[1:]]
    assert len(times) == 3
    assert times[1] - times[0] >= 2
    assert times[2] - times[1] >= 1.5
    assert judge.counts()["calls"] == 2  # retries are not paid


def test_other_failures_are_retried_too(judge: JudgeReward, server: JudgeServer) -> None:
    server.fault = _first(Fault(500), Fault(share=0.5))
    assert _one(judge) == (0.7, "")
    assert len(server.asked) == 1 + 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(429, body=b'{"error": {"message": "slow down"}}'), "rate_limited: Error code: 429 - slow down"),
        (Fault(500, body=b"oops"), "server_error: 500: Error code: 500"),
        (Fault(503), "server_error: 503"),
        (Fault(400, body=b'{"error": {"message": "too long"}}'), "refused: 400: Error code: 400 - too long"),
        (Fault(share=0.5), "unreachable: http://127.0.0.1"),
        (Fault(body=b'{"id": "1", "choi'), "no_reply: JSONDecodeError"),
        (Fault(body=b"<html>a portal</html>"), "no_reply: JSONDecodeError"),
        (Fault(body=b'{"choices": []}'), "no_reply: no chat completion"),
        (Fault(body=b'{"detail": "hello"}'), "no_reply: no chat completion"),
        (Fault(body=b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'),
         "no_reply: an empty reply (content_filter)"),
        (Fault(body=b'{"choices": [{"message": {"content": "good"}, "finish_reason": "stop"}]}'), "no_score: "),
        (Fault(body=b'{"choices": [{"message": {"content": "{\\"score\\": 5}"}, "finish_reason": "length"}]}'),
         "cut_off: "),
    ],
)  # fmt: skip
def test_what_does_not_heal_costs_one_completion(
    judge: JudgeReward, server: JudgeServer, fault: Fault, reason: str
) -> None:
    server.fault = lambda request, before: fault if quoted(request)[-1] == "bad" else None
    reasons: dict[str, Any] = {}
    rewards = judge(prompts=["q"] * 3, completions=["a", "bad", "ccc"], log_extra=reasons.__setitem__)
    assert rewards == [0.1, None, 0.3]
    assert reasons["judge_failure"][1].startswith(reason)
    assert judge.counts()["failures"] == 1


def test_a_slow_server_costs_its_time_limit(server: JudgeServer) -> None:
    """Also one that sends a byte now and then, which the client's own limit does not end."""
    judge = JudgeReward(model="m", base_url=server.url, retries=0, timeout=3, patience=6)
    judge(prompts=["q"], completions=["works"])
    for fault, reason in (
        (Fault(seconds=10), "timeout: Request timed out."),
        (Fault(seconds=1), "timeout: no reply within patience = 6 s"),
    ):
        server.fault = lambda request, before, fault=fault: fault
        started = time.monotonic()
        assert _one(judge, f"slow {fault.seconds}") == (None, reason)
        assert time.monotonic() - started < 20
    judge.close()


def test_nobody_there(server: JudgeServer) -> None:
    judge = JudgeReward(model="m", base_url="http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(Exception, match=r"unreachable: refine: the judge has given no score so far"):
        judge(prompts=["q"], completions=["a"])
    judge.close()


def test_a_wrong_key_is_said_at_once(judge: JudgeReward, server: JudgeServer) -> None:
    server.fault = lambda request, before: Fault(401, body=b'{"error": {"message": "bad key"}}')
    with pytest.raises(ConfigError, match=r"refuses every request \(401\): .*bad key"):
        _one(judge)
    assert len(server.asked) == 2
