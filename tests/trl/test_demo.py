"""The demo, in a short form, as a newcomer runs it: the command, the files it leaves, Ctrl-C and going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from refine_testing.signals import take_interrupts
from refine_testing.traces import read_groups

from refine_wrapper.study.report import write_report
from refine_wrapper.study.report.run_folder import read_run

SHORT = ("--seeds", "1", "--steps", "3", "--warm-start-steps", "30", "--prompts", "4", "--problems", "20")
COMMAND = (sys.executable, "-m", "refine_wrapper.cli", "demo")


def _run(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished short run: its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    ran = _run(*SHORT, "--out", str(out))
    assert ran.returncode == 0, ran.stderr
    return out, ran.stdout


def test_both_arms_train_on_the_same_budget_and_are_reported(finished: tuple[Path, str]) -> None:
    out, screen = finished
    results = {r["arm"]: r for r in json.loads((out / "results.json").read_text())["arms"]}
    assert set(results) == {"plain", "refined"}
    for result in results.values():
        assert result["completions"] == 3 * 4 * 8  # steps x prompts x completions, drafts included
        assert result["tokens"] > 0
        assert 0 <= result["single_shot"] <= 1
        assert 0 <= result["with_draft"] <= 1
    assert results["plain"]["copy_rate"] is None
    assert results["refined"]["copy_rate"] is not None
    for word in ("plain", "refined", "warm start", "single-shot", "standard error"):
        assert word in screen
    assert (out / "report.md").read_text().count("\n| ") == 5  # head, rule, warm start and both arms
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_reads_it_as_it_reads_an_ablation(finished: tuple[Path, str]) -> None:
    out, _ = finished
    run = read_run(out)
    results = {r["arm"]: r for r in json.loads((out / "results.json").read_text())["arms"]}
    assert {cell.name: (cell.state, cell.trace is not None) for cell in run.cells} == {
        "plain-0": ("finished", False),
        "refined-0": ("finished", True),
    }
    for cell in run.cells:
        assert (cell.setting["num_drafts"], cell.setting["group_size"]) == ((4, 4) if cell.trace else (0, 8))
        rows = run.table[run.table["cell"] == cell.name]
        result = results["refined" if cell.trace else "plain"]
        assert rows[rows["metric"] == "eval/single_shot"]["value"].iloc[-1] == result["single_shot"]
        assert rows["completions"].max() == result["completions"]
        assert sorted(rows[rows["metric"] == "reward"]["step"]) == [1, 2, 3]
    assert "200 problems" in run.plan
    assert write_report(out).stat().st_size > 1e6


def test_the_refined_arm_was_refined_by_the_core(finished: tuple[Path, str]) -> None:
    out, _ = finished
    groups = read_groups(out / "cells" / "refined-0" / "trace")
    assert len(groups) == 3 * 4
    assert {len(g["drafts"]) for g in groups} == {4}
    assert {len(g["refinements"]) for g in groups} == {4}
    refined = [g for g in groups if g["action"] == "refine"]
    assert refined
    for group in refined:
        assert group["prompt"] == f"{group['question']}{group['draft_text']}#{group['question']}"


def test_a_finished_run_is_reported_again_without_training(finished: tuple[Path, str]) -> None:
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    again = _run(*SHORT, "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert "refined minus plain" in again.stdout


def test_other_settings_do_not_mix_into_a_folder(finished: tuple[Path, str]) -> None:
    out, _ = finished
    other = _run(*SHORT, "--steps", "4", "--out", str(out))
    assert other.returncode != 0
    assert "steps: 3 there, 4 now" in other.stderr


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    planned = _run("--dry-run", "--out", str(tmp_path / "out"))
    assert planned.returncode == 0, planned.stderr
    assert "4 drafts + 4 refinements" in " ".join(planned.stdout.split())
    assert not (tmp_path / "out").exists()


def test_control_c_leaves_a_partial_report_and_the_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    long = [*COMMAND, *SHORT, "--steps", "2000", "--out", str(out)]
    steps = out / "cells" / "plain-0" / "steps.jsonl"
    with subprocess.Popen(
        long, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=take_interrupts
    ) as process:
        try:
            deadline = time.monotonic() + 200
            while not (steps.exists() and steps.read_text().count("\n") >= 2):
                assert process.poll() is None, process.stdout and process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            screen, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, screen
    assert "Interrupted" in screen
    assert "warm start" in (out / "report.md").read_text()
    assert (out / "curves.png").exists()
    [cell] = read_run(out).cells
    assert (cell.name, cell.state) == ("plain-0", "unfinished")


@pytest.mark.parametrize("objective", ["dapo", "dr_grpo", "rloo"])
def test_other_objectives(tmp_path: Path, objective: str) -> None:
    out = tmp_path / "out"
    ran = _run(*SHORT, "--objective", objective, "--steps", "1", "--out", str(out))
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads((out / "results.json").read_text())["arms"]) == 2
