"""The judge as OpenRLHF's reward file: its executor around both stages, the real client, a local endpoint."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from refine_testing.judge_server import Fault, JudgeServer, judge_server, quoted
from refine_testing.openrlhf_engine import NOTE, Engine, chat, marked, sample_group

from refine_wrapper.core.types import Outcome
from refine_wrapper.errors import ConfigError
from refine_wrapper.rewards.judge import JudgeReward
from refine_wrapper_openrlhf import make_reward_func
from refine_wrapper_openrlhf.launched_agent import GROUP, AgentExecutor

pytest.importorskip("openai")
EXAMPLE = Path(__file__).parents[2] / "examples" / "openrlhf" / "judge"
Q = chat("How many?")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """The endpoint, and settings for it in the environment, as a reward actor finds them."""
    with judge_server() as server:
        server.rule = lambda request: json.dumps({"score": int(quoted(request)[-1].split()[-1])})
        settings = {"model": "m", "base_url": server.url, "cache": str(tmp_path / "judge.sqlite"), "retries": 0}
        (tmp_path / "judge.json").write_text(json.dumps(settings))
        monkeypatch.setenv("REFINE_WRAPPER_JUDGE", str(tmp_path / "judge.json"))
        yield server


@pytest.fixture
def reward(tmp_path: Path) -> str:
    path = tmp_path / "reward.py"
    path.write_text(
        "from refine_wrapper.rewards.judge import JudgeReward\n"
        "from refine_wrapper_openrlhf import make_reward_func\n"
        "reward_func = make_reward_func(JudgeReward())\n"
    )
    return str(path)


def _run(reward: str, script: Any, size: int = 2) -> list[dict[str, Any]]:
    engine = Engine(script)
    return asyncio.run(sample_group(AgentExecutor(), engine, Q, "4", marked(reward, size=size), size))


def _answers(prompt: str, number: int) -> str:
    return f"second {number + 1}" if NOTE in prompt else f"first {(3, 7, 5)[number]}"


def test_both_stages_are_judged_on_q(server: JudgeServer, reward: str) -> None:
    rows = _run(reward, _answers)
    assert sorted(row["reward"] for row in rows) == [[0.1], [0.2]]
    judged = [quoted(request) for request in server.requests]
    assert sorted(answer for _, answer in judged) == ["first 3", "first 5", "first 7", "second 1", "second 2"]
    assert {question for question, _ in judged} == {judged[0][0]}
    assert "How many?" in judged[0][0]
    assert "<|im_start|>" not in judged[0][0]  # q as OpenRLHF renders it, without tokens that speak to the judge
    assert not any(NOTE in json.dumps(request) for request in server.requests)
    for row in rows:
        assert 4 <= row["extra_logs"]["judge/calls"][0] <= 5  # so far, in this process
        assert row["extra_logs"]["judge/failures"] == [0.0]


def test_a_failed_judgement_is_a_failed_draft_with_its_reason(server: JudgeServer, reward: str) -> None:
    server.fault = lambda request, before: Fault(500) if quoted(request)[-1] == "first 7" else None
    rows = _run(reward, _answers)
    group = rows[0][GROUP]
    failed = [draft for draft in group.drafts if draft.outcome is Outcome.REWARD_EXCEPTION]
    assert [draft.text for draft in failed] == ["first 7"]
    assert "judge_failure: server_error: 500" in failed[0].detail
    assert group.last_shown().text == "first 5"


def test_a_group_cannot_be_compared_here() -> None:
    with pytest.raises(ConfigError, match=r"OpenRLHF has each scored alone\. Set together: false"):
        make_reward_func(JudgeReward(model="m", together=True))


def test_the_example(server: JudgeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its reward file and its settings, but for the address."""
    settings = (EXAMPLE / "judge.yaml").read_text()
    served = settings.replace("http://localhost:8000/v1", server.url).replace("cache: ", f"cache: {tmp_path}/")
    assert served.count(server.url) == 1
    (tmp_path / "judge.yaml").write_text(served.replace("prompt: prompt.txt", f"prompt: {EXAMPLE / 'prompt.txt'}"))
    monkeypatch.setenv("REFINE_WRAPPER_JUDGE", str(tmp_path / "judge.yaml"))
    server.rule = lambda request: json.dumps({"reason": "as", "score": 4})
    rows = _run(str(EXAMPLE / "reward.py"), lambda prompt, number: f"It is \\boxed{{{number}}}.")
    assert [row["reward"] for row in rows] == [[pytest.approx(0.75 + 0.2)]] * 2  # (4 - 1) / (5 - 1), and the form
    assert os.path.exists(tmp_path / "outputs" / "judge.sqlite")
