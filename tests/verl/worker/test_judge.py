"""The judge as veRL's custom reward function: its agent loop and reward loop, the real client, a local endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from refine_testing.judge_server import Fault, JudgeServer, judge_server, quoted
from refine_testing.verl_worker import Bench, prompt

from refine_wrapper.errors import ConfigError
from refine_wrapper.rewards.judge import JudgeReward
from refine_wrapper_verl import make_compute_score

pytest.importorskip("openai")
EXAMPLE = Path(__file__).parents[3] / "examples" / "verl" / "judge"
TEMPLATE = "Here is an attempt at this problem."


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """The endpoint, and settings for it in the environment, as a reward worker finds them."""
    with judge_server() as server:
        server.rule = lambda request: json.dumps({"score": int(quoted(request)[-1].split()[1])})
        settings = {"model": "m", "base_url": server.url, "cache": str(tmp_path / "judge.sqlite"), "retries": 0}
        (tmp_path / "judge.json").write_text(json.dumps(settings))
        monkeypatch.setenv("REFINE_WRAPPER_JUDGE", str(tmp_path / "judge.json"))
        yield server


def _reward(folder: Path, kind: str) -> str:
    path = folder / "reward.py"
    path.write_text(
        f"from refine_wrapper.rewards.judge import {kind}\n"
        "from refine_wrapper_verl import make_compute_score\n"
        f"compute_score = make_compute_score({kind}())\n"
    )
    return str(path)


def _asked(text: str = "What is 2+2?") -> dict:
    return prompt("a", text, extra_info={"index": 0, "question": text})


@pytest.mark.parametrize("kind", ["JudgeReward", "AsyncJudgeReward"])
def test_both_stages_are_judged_on_q(
    bench: Callable[..., Bench], server: JudgeServer, tmp_path: Path, kind: str
) -> None:
    host = bench(reward=_reward(tmp_path, kind), answer=lambda text, number: f"answer {number}")
    host.prompts(_asked())
    rows = host.rows_of("a")
    assert len(rows) == 3
    assert all(TEMPLATE in host.text(row["prompts"]) for row in rows)
    judged = [quoted(request) for request in server.requests]
    assert sorted(answer for _, answer in judged) == [f"answer {number}" for number in range(4 + 3)]
    assert {question for question, _ in judged} == {"What is 2+2?"}
    assert not any(TEMPLATE in json.dumps(request) for request in server.requests)
    assert sorted(host.reward.scored) == [pytest.approx(n / 10) for n in range(7)]
    [group] = host.worker.take_finished_groups()
    assert [draft.outcome.value for draft in group.drafts] == ["ok"] * 4


def test_a_failed_judgement_is_a_failed_draft_with_its_reason(
    bench: Callable[..., Bench], server: JudgeServer, tmp_path: Path
) -> None:
    server.fault = lambda request, before: Fault(500) if quoted(request)[-1] == "answer 3" else None
    host = bench(reward=_reward(tmp_path, "AsyncJudgeReward"), answer=lambda text, number: f"answer {number}")
    host.prompts(_asked())
    [group] = host.worker.take_finished_groups()
    assert [draft.outcome.value for draft in group.drafts] == ["ok", "ok", "ok", "reward_exception"]
    assert "judge_failure: server_error: 500" in group.drafts[3].detail
    assert len(host.rows_of("a")) == 3


def test_a_data_set_without_questions_is_told_how_to_have_them(server: JudgeServer) -> None:
    compute_score = make_compute_score(JudgeReward())
    with pytest.raises(ConfigError, match=r"not None.* on veRL the data set has it in extra_info\.question"):
        asyncio.run(compute_score("tiny", "4", "4", {"index": 0}))
    scored = asyncio.run(compute_score("tiny", "answer 4", "4", {"question": "2+2?"}))
    assert scored["score"] == scored["judge"] == 0.4
    assert scored["judge/calls"] == 1


def test_a_group_cannot_be_compared_here() -> None:
    with pytest.raises(ConfigError, match=r"veRL has each scored alone\. Set together: false"):
        make_compute_score(JudgeReward(model="m", together=True))


def test_the_example(
    bench: Callable[..., Bench], server: JudgeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its reward file and its settings, but for the address."""
    settings = (EXAMPLE / "judge.yaml").read_text()
    served = settings.replace("http://localhost:8000/v1", server.url).replace("cache: ", f"cache: {tmp_path}/")
    assert served.count(server.url) == 1
    (tmp_path / "judge.yaml").write_text(served)
    monkeypatch.setenv("REFINE_WRAPPER_JUDGE", str(tmp_path / "judge.yaml"))
    server.rule = lambda request: json.dumps({"reason": "as", "score": 5})
    host = bench(reward=str(EXAMPLE / "reward.py"), answer=lambda text, number: f"It is \\boxed{{{number}}}.")
    host.prompts(_asked())
    assert host.reward.scored == [pytest.approx(0.5 + 0.2)] * 7
    assert all("truth of a" in json.dumps(request) for request in server.requests)  # the label, as it asks
