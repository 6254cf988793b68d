"""The example with a judge as users run it, plain and refined. The client is a STAND-IN here; the real one: tests/trl_vllm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from refine_testing.tiny import save_tiny

from refine_wrapper.core.trace import read_trace
from refine_wrapper.rewards.judge.store import Store

TRAIN = Path(__file__).parents[3] / "examples" / "trl" / "judge" / "train.py"
_OPENAI = """
import json, re
from types import SimpleNamespace

class OpenAIError(Exception): ...
class APIConnectionError(OpenAIError): ...
class APITimeoutError(APIConnectionError): ...
class APIStatusError(OpenAIError): ...

class AsyncOpenAI:
    def __init__(self, **settings):
        assert settings["base_url"] == "http://localhost:8000/v1"
        self.chat = SimpleNamespace(completions=self)

    async def create(self, **request):
        count = len(re.findall("^Answer [0-9]+:", request["messages"][1]["content"], re.MULTILINE))
        message = SimpleNamespace(content=json.dumps({"reason": "", "scores": list(range(count))}))
        usage = SimpleNamespace(prompt_tokens=1, completion_tokens=1)
        return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")], usage=usage)

    async def close(self): ...
"""


@pytest.mark.parametrize("reward", ["judge", "both"])
def test_the_example(reward: str, tmp_path: Path) -> None:
    (tmp_path / "openai.py").write_text(_OPENAI)
    (tmp_path / "judge.yaml").write_text(TRAIN.with_name("judge.yaml").read_text())
    command = [sys.executable, "-m", "refine_wrapper.cli", "run", "--refine.num_drafts", "4", "--refine.match_budget"]
    command += ["--refine.trace_dir", "trace", "--refine.trace_texts", "--", sys.executable, str(TRAIN)]
    command += ["--model", save_tiny(tmp_path / "model"), "--reward", reward, "--judge", "judge.yaml"]
    command += ["--max_steps", "1", "--max_completion_length", "8", "--use_cpu", "true", "--bf16", "false"]
    ran = subprocess.run(
        [*command, "--report_to", "none"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    groups = read_trace(tmp_path / "trace")
    assert len(groups) == 2
    rewards = [sample["reward"] for group in groups for sample in group["samples"]]
    assert None not in rewards
    judged = tmp_path / "trace" / "judge.jsonl"
    assert judged.exists() == (reward != "rule")
    if reward != "rule":
        store = Store(tmp_path / "outputs" / "judge.sqlite", "run")
        assert store.counts()["calls"] == 2 * 2 * 2  # groups, stages, judgements
        store.close()
        assert len(judged.read_text().splitlines()) == 8
        assert "judge/calls" in ran.stdout
