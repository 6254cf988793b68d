"""Killed, interrupted, finished: the same command goes on, and what it leaves is what an unstopped run leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from refine_testing.evaluations import PALINDROMES, evaluate, result_of, start

# Eight batches of five problems; each with two measures.
BATCHES = (*PALINDROMES, "--samples", "4", "--batch-size", "20")
FILES = ("answers.jsonl", "evaluation.json", "settings.json")
SLOW = """
import time

from refine_wrapper.rewards.reasoning_gym import ReasoningGymReward

verify = ReasoningGymReward()

def slow(completions, entry, **columns):
    time.sleep(0.2)
    return verify(completions=completions, entry=entry)
"""


def _wait_for(lines: int, out: Path, process: subprocess.Popen[str]) -> None:
    answers = out / "answers.jsonl"
    deadline = time.monotonic() + 240
    while not (answers.exists() and answers.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.timeout(900)  # two processes that import torch, on a machine that may be busy
def test_kill_and_control_c_and_going_on_give_the_identical_files(workplace: Path) -> None:
    """The reward is slow, so that both signals come in the middle on any machine."""
    (workplace / "slow.py").write_text(SLOW)
    stopped = (*BATCHES, "--reward", "slow.py:slow", "--out", workplace / "stopped")
    with start(workplace, *stopped) as process:
        try:
            _wait_for(10, workplace / "stopped", process)
        finally:
            process.kill()
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    with (workplace / "stopped" / "answers.jsonl").open("a") as answers:
        answers.write('{"batch": 2, "id": "1')  # what a kill in the middle of a write may leave
    with start(workplace, *stopped) as process:
        try:
            _wait_for(20, workplace / "stopped", process)
            process.send_signal(signal.SIGINT)
            screen, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, screen
    assert "Interrupted; finished batches are in" in screen
    assert "To go on:\nrefine-wrapper eval palindromes palindromes.jsonl" in screen
    assert not (workplace / "stopped" / "evaluation.json").exists()

    planned = evaluate(workplace, *stopped, "--dry-run")
    kept = (workplace / "stopped" / "answers.jsonl").read_bytes().count(b"\n")
    assert kept >= 20
    assert f"has answers to {kept} problems" in " ".join(planned.stdout.split())

    whole = (*BATCHES, "--reward", "slow.py:slow", "--out", workplace / "whole")
    for command in (stopped, whole):
        ran = evaluate(workplace, *command)
        assert ran.returncode == 0, ran.stderr
    for name in FILES:
        assert (workplace / "stopped" / name).read_bytes() == (workplace / "whole" / name).read_bytes()

    before = (workplace / "stopped" / "answers.jsonl").stat().st_mtime_ns
    again = evaluate(workplace, *stopped)
    assert again.returncode == 0
    assert "avg@4" in again.stdout
    assert (workplace / "stopped" / "answers.jsonl").stat().st_mtime_ns == before

    other = evaluate(workplace, *stopped, "--samples", "3", "--refine.shorten", "keep_head")
    assert other.returncode == 2
    assert "settings.samples: 4 there, 3 now; refine.shorten: 'keep_tail' there, 'keep_head' now" in other.stderr


def test_retrained_weights_under_one_name_are_another_model(workplace: Path, tmp_path: Path) -> None:
    from refine_testing.tiny import save_tiny

    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "2 + 2?"}) + "\n")
    command = ("model", "p.jsonl", "--reward", "format", "--max-new-tokens", "4", "--draft", "none", "--out", "out")
    save_tiny(tmp_path / "model", seed=0)
    assert evaluate(tmp_path, *command).returncode == 0
    first = result_of(tmp_path / "out")["model"]
    save_tiny(tmp_path / "model", seed=1)
    refused = evaluate(tmp_path, *command)
    assert refused.returncode == 2
    assert f"model.digest: '{first['digest']}' there" in refused.stderr
    assert evaluate(tmp_path, *command, "--fresh").returncode == 0
    assert result_of(tmp_path / "out")["model"]["name"] == first["name"]
