"""The examples as users run them, on tiny local models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from refine_testing.tiny import save_tiny
from refine_testing.traces import read_groups

EXAMPLES = Path(__file__).parents[2] / "examples" / "trl"
RUN = (sys.executable, "-m", "refine_wrapper.cli", "run")
SMALL = (sys.executable, str(EXAMPLES / "train_small.py"), "--cpu", "--max-steps", "2")


def _run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "TMPDIR": str(folder)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=folder, env=environment)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran


def test_the_small_script_plain_and_switched_on(tmp_path: Path) -> None:
    _run(*SMALL, folder=tmp_path)
    assert not (tmp_path / "trace").exists()
    flags = ("--refine.num_drafts", "4", "--refine.match_budget", "--refine.trace_dir", "trace")
    _run(*RUN, *flags, "--", *SMALL, folder=tmp_path)
    groups = read_groups(tmp_path / "trace")
    assert len(groups) == 2 * 2  # steps x prompts a step, as in the plain run
    assert all(len(g["drafts"]) == 4 and len(g["refinements"]) == 4 for g in groups)


def test_the_papers_recipe_parses_and_trains_a_tiny_model(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    data = tmp_path / "problems.jsonl"
    data.write_text(
        "".join(json.dumps({"problem": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(8))
    )
    smaller = {
        "model_name_or_path": model,
        "dataset": str(data),
        "output_dir": str(tmp_path / "out"),
        "refine_trace_dir": str(tmp_path / "trace"),
        "use_vllm": "false",
        "bf16": "false",
        "use_cpu": "true",
        "max_completion_length": "16",
        "gradient_accumulation_steps": "1",
        "max_steps": "2",
    }
    flags = [part for name, value in smaller.items() for part in (f"--{name}", value)]
    folder = EXAMPLES / "igrpo_7b"
    ran = _run(
        sys.executable, str(folder / "train.py"), "--config", str(folder / "recipe.yaml"), *flags, folder=tmp_path
    )
    assert "N=4 drafts + G=4 refinements" in ran.stderr
    groups = read_groups(tmp_path / "trace")
    assert len(groups) == 2
    assert all(len(g["drafts"]) == 4 and len(g["refinements"]) == 4 for g in groups)
    assert (tmp_path / "out" / "model.safetensors").exists()
