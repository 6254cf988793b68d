"""vLLM inside TRL's trainer (colocate, CPU build): q' reaches the engine, and the engine follows the policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from refine_testing.traces import read_groups, rows_of

SCRIPT = Path(__file__).parent / "scripts" / "colocate.py"
SUPPORT = Path(__file__).parents[1] / "support"
GAP = "sampling/sampling_logp_difference/mean"


def _train(folder: Path, *options: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_CI_ENV": "1",  # eager, no warm-up
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
    }
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *options],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=environment,
        start_new_session=True,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A refined run of four steps with vLLM."""
    folder = tmp_path_factory.mktemp("vllm")
    _train(folder)
    return {**json.loads((folder / "result.json").read_text()), "groups": read_groups(folder / "trace")}


def test_drafts_and_refinements_come_from_the_engine(run: dict[str, Any]) -> None:
    assert run["rows_scored"] == [2 * 3, 2 * 4] * 4  # N rows a group, then G rows a group; two groups, four steps
    assert len(run["groups"]) == 2 * 4
    assert all(len(g["drafts"]) == 3 and len(g["refinements"]) == 4 for g in run["groups"])


def test_q_prime_is_trained_and_q_is_scored(run: dict[str, Any]) -> None:
    refined = [g for g in run["groups"] if g["action"] == "refine"]
    assert refined
    assert sorted(run["trained"]) == sorted(g["prompt"] for g in run["groups"] for _ in range(4))
    assert all(run["template_is_in"] in g["prompt"] and g["draft_text"] in g["prompt"] for g in refined)
    assert not any(run["template_is_in"] in prompt for prompt in run["prompts_scored"])


def test_the_engine_follows_the_policy(run: dict[str, Any], tmp_path: Path) -> None:
    """With weights synced, vLLM's logprobs stay the policy's; the same run without the sync shows that this can fail."""
    assert run["moved"] > 0.01
    synced = run["log"][-1][GAP]
    assert synced < 0.02
    _train(tmp_path, "--stale")
    stale = json.loads((tmp_path / "result.json").read_text())["log"][-1][GAP]
    assert stale > 5 * synced


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with draft-ahead on an engine that holds less than q with a whole draft."""
    folder = tmp_path_factory.mktemp("short")
    _train(folder, "--max-length", "290", "--draft-ahead")
    return {**json.loads((folder / "result.json").read_text()), "groups": read_groups(folder / "trace")}


def test_the_draft_is_cut_to_the_length_of_the_engine(short: dict[str, Any]) -> None:
    assert short["longest_prompt"] <= 290 - 24
    assert any(group["draft_shortened"] for group in short["groups"])
    assert all(group["question"] in group["prompt"] for group in short["groups"])


def test_drafts_of_the_next_batch_ride_along(run: dict[str, Any], short: dict[str, Any]) -> None:
    assert run["rows_asked"] == [6, 8] * 4
    assert short["rows_asked"] == [6, 14, 14, 14, 8]
    assert short["rows_scored"] == run["rows_scored"]
    assert sorted(short["trained"]) == sorted(g["prompt"] for g in short["groups"] for _ in range(4))
    # Each row has its own tokens: were completions handed to other rows, their logprobs would be far from the policy's.
    assert short["log"][-1][GAP] < 0.02


def test_rows_trained_as_answers_to_q_are_left_out_of_the_engines_correction(tmp_path: Path) -> None:
    """Mode on_failure: the engine's log-probabilities of such rows are under q', so their ratio is 1; others have theirs."""
    _train(tmp_path, "--mode", "on_failure")
    groups, result = read_groups(tmp_path / "trace"), json.loads((tmp_path / "result.json").read_text())
    assert result["trained"] == [prompt for prompt, _, _ in rows_of(groups)]
    on_question = [on for group in groups for _, on, _ in group["slots"]]
    assert any(on_question), "no row was trained under q that was sampled under q'"
    assert len(on_question) == len(result["ratios"])
    assert {ratio for ratio, on in zip(result["ratios"], on_question, strict=True) if on} == {1.0}
    assert any(ratio != 1.0 for ratio, on in zip(result["ratios"], on_question, strict=True) if not on)
    assert all(entry[GAP] < 0.02 for entry in result["log"])
    assert result["moved"] > 0.01


def test_a_length_that_can_hold_no_draft_is_refused_with_numbers(tmp_path: Path) -> None:
    _train(tmp_path, "--max-length", "128")
    refused = (tmp_path / "refused.txt").read_text()
    assert "vllm_max_model_length=128 cannot hold a refined prompt" in refused
    assert "max_completion_length=24" in refused
