"""`refine-wrapper ablate` on the example: real TRL, killed in the middle, with a cell that fails.

One run proves most of it, because each cell starts an interpreter with TRL in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from refine_testing.signals import take_interrupts

from refine_wrapper.core.trace import read_trace
from refine_wrapper.study.ablation.local import is_locked

EXAMPLE = Path(__file__).parents[2] / "examples" / "ablation"
ABLATE = (sys.executable, "-m", "refine_wrapper.cli", "ablate")
PROMPTS, STEPS = 4, 3
# Each cell starts an interpreter with TRL in it, twice.
pytestmark = pytest.mark.timeout(900)
FAILING = """
import os, runpy, sys
if "--seed 1" in " ".join(sys.argv) and '"num_drafts"' in os.environ["REFINE_WRAPPER_FLAGS"]:
    sys.exit("the disk is full")
sys.path.insert(0, {folder!r})
sys.argv[0] = {script!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The example's script, but its refined run fails at seed 1."""


@dataclass(frozen=True)
class Ablation:
    """What the calls left."""

    folder: Path
    second: subprocess.CompletedProcess[str]

    def cell(self, name: str) -> Path:
        return self.folder / "cells" / name

    @property
    def table(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "results.parquet")


def plan(folder: Path, script: Path = EXAMPLE / "train.py", **changes: object) -> Path:
    """The example's plan, made small."""
    content = yaml.safe_load((EXAMPLE / "plan.yaml").read_text(encoding="utf-8"))
    command = content["hosts"]["trl"]["command"].replace("train.py", str(script))
    content["hosts"]["trl"]["command"] = command
    content["prompts"] = PROMPTS
    content["prepare"] = f"python {EXAMPLE / 'prepare.py'} {{run}} --steps 5"
    content["refine"]["template"] = str(EXAMPLE / "q-draft-q.txt")
    content["tasks"] = {"palindrome": {}}
    content["objectives"] = ["grpo"]
    content["steps"] = STEPS
    content["evaluate"] |= {"reward": f"{EXAMPLE / 'tasks.py'}:reward", "limit": 12, "samples": 2}
    content |= changes
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def environ() -> dict[str, str]:
    # The example's scripts import what lies beside them, which nox's safe path would forbid.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return {**kept, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended before, with code {process.returncode}"
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    """Two seeds; the first call is killed with -9 while a cell trains, and the refined cell of seed 1 fails."""
    folder = tmp_path_factory.mktemp("ablation")
    script = folder / "failing.py"
    script.write_text(FAILING.format(folder=str(EXAMPLE), script=str(EXAMPLE / "train.py")), encoding="utf-8")
    file = plan(folder, script=script, seeds=[0, 1])
    out = folder / "run"
    with (folder / "first.log").open("wb") as log:
        first = subprocess.Popen([*ABLATE, str(file), "--out", str(out)], stdout=log, stderr=log, env=environ())
        plain = out / "cells" / "trl--grpo--palindrome--plain--seed0"
        wait_for(lambda: (plain / "log.txt").exists() and "failing.py" in (plain / "log.txt").read_text(), first)
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert is_locked(plain), "a killed `ablate` leaves its cell running"
    again = [*ABLATE, str(file), "--out", str(out), "--jobs", "2"]
    second = subprocess.run(again, capture_output=True, text=True, timeout=600, check=False, env=environ())
    return Ablation(out, second)


def test_a_killed_call_goes_on_without_repeating_a_cell(ablation: Ablation) -> None:
    for name in ("plain--seed0", "plain--seed1", "4+4--seed0"):
        log = (ablation.cell(f"trl--grpo--palindrome--{name}") / "log.txt").read_text()
        assert log.count("refine_wrapper.cli run") == 1, name
        assert (
            json.loads((ablation.cell(f"trl--grpo--palindrome--{name}") / "status.json").read_text())["state"]
            == "finished"
        )


def test_a_failed_cell_is_reported_and_does_not_stop_the_rest(ablation: Ablation) -> None:
    assert ablation.second.returncode == 1
    assert "failed: trl--grpo--palindrome--4+4--seed1" in ablation.second.stdout
    assert "the disk is full" in ablation.second.stdout
    assert "4 finished" in ablation.second.stdout
    assert "1 failed" in ablation.second.stdout


def test_nothing_is_left_running(ablation: Ablation) -> None:
    assert not [path for path in (ablation.folder / "cells").iterdir() if is_locked(path)]


def test_the_table_has_the_values_of_every_cell(ablation: Ablation) -> None:
    table = ablation.table
    plain = table[(table["cell"] == "trl--grpo--palindrome--plain--seed0")]
    refined = table[(table["cell"] == "trl--grpo--palindrome--4+4--seed0")]
    assert set(plain["group_size"]) == {8}
    assert set(refined["group_size"]) == {4}
    for cell in (plain, refined):
        rewards = cell[cell["metric"] == "reward"]
        assert rewards["step"].tolist() == list(range(1, STEPS + 1))
        assert rewards["completions"].tolist() == [PROMPTS * 8 * step for step in range(1, STEPS + 1)]
        assert rewards["tokens"].is_monotonic_increasing
        assert (rewards["seconds"] >= 0).all()
    assert {"refine/uplift", "refine/copy_rate", "entropy"} <= set(refined["metric"])
    assert not any(name.startswith("refine/") for name in plain["metric"])
    assert set(refined["mode"]) == {"paper"}
    assert plain["mode"].isna().all()


def test_generated_tokens_are_those_of_the_trace(ablation: Ablation) -> None:
    groups = read_trace(ablation.cell("trl--grpo--palindrome--4+4--seed0") / "trace")
    table = ablation.table
    rows = table[(table["cell"] == "trl--grpo--palindrome--4+4--seed0") & (table["metric"] == "reward")]
    tokens = sum(sample["num_tokens"] for group in groups for sample in group["samples"])
    assert rows["tokens"].iloc[-1] == tokens
    assert len(groups) == PROMPTS * STEPS


def test_held_out_values_are_those_of_eval(ablation: Ablation) -> None:
    table = ablation.table
    for name in ("start--palindrome", "trl--grpo--palindrome--plain--seed1"):
        measured = json.loads((ablation.cell(name) / "evaluation" / "evaluation.json").read_text())
        (value,) = table[(table["cell"] == name) & (table["metric"] == "eval/single_shot")]["value"]
        assert value == measured["measures"]["single_shot"]["figures"]["avg@2"]["value"]


def test_what_it_says_and_writes(ablation: Ablation) -> None:
    said = ablation.second.stdout
    assert "one seed: nothing can be said" in said
    assert "eval/single_shot" in (ablation.folder / "summary.md").read_text()
    assert "<html" in (ablation.folder / "report.html").read_text(encoding="utf-8")


def test_another_plan_is_refused_for_the_same_folder(ablation: Ablation) -> None:
    file = plan(ablation.folder.parent, seeds=[0, 1], steps=STEPS + 1)
    ran = subprocess.run(
        [*ABLATE, str(file), "--out", str(ablation.folder)], capture_output=True, text=True, check=False, env=environ()
    )
    assert ran.returncode == 2
    assert "was made with another" in ran.stderr
    assert "steps: 3, now 4" in ran.stderr


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    file = plan(tmp_path)
    ran = subprocess.run(
        [*ABLATE, str(file), "--out", str(tmp_path / "run"), "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
        env=environ(),
    )
    assert "6 cells x 3 steps" in ran.stdout
    assert "--refine.num_drafts=4" in ran.stdout
    assert not (tmp_path / "run").exists()


def test_tokens_are_matched_by_a_pilot_and_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    file = plan(tmp_path, seeds=[0], match="tokens", pilot_steps=2, evaluate=None, start="")
    out = tmp_path / "run"
    plain, refined = (out / "cells" / f"trl--grpo--palindrome--{name}--seed0" for name in ("plain", "4+4"))
    command = [*ABLATE, str(file), "--out", str(out)]
    interrupted = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ(),
        preexec_fn=take_interrupts,
    )
    wait_for(lambda: (plain / "log.txt").exists() and "train.py" in (plain / "log.txt").read_text(), interrupted)
    interrupted.send_signal(signal.SIGINT)
    said, _ = interrupted.communicate(timeout=200)
    assert interrupted.returncode == 130
    assert "The same command goes on" in said
    assert not is_locked(plain)
    assert not (plain / "status.json").exists()
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environ())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    pilot = read_trace(refined / "pilot" / "trace")
    per_step = sum(sample["num_tokens"] for group in pilot for sample in group["samples"]) / 2
    table = pd.read_parquet(out / "results.parquet")
    rows = table[(table["cell"] == plain.name) & (table["metric"] == "completion_length")]
    budget = rows["value"].sum() * PROMPTS * 8
    steps = json.loads((refined / "trained.json").read_text())["steps"]
    assert steps == max(1, round(budget / per_step))
    assert "refinements saw a draft" in " ".join(ran.stdout.split())  # nothing held out is measured
    assert "refinements saw a draft" in (out / "summary.md").read_text(encoding="utf-8")
    trained = table[(table["cell"] == refined.name) & (table["metric"] == "reward")]
    assert trained["step"].max() == steps
