"""The examples as users run them; the small one on a CPU, with a tiny random model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
from refine_testing.tiny import save_tiny
from refine_testing.verl_host import TEMPLATE_IS_IN, Run, overrides, run_command

EXAMPLES = Path(__file__).parents[2] / "examples" / "verl"


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)
def test_the_small_run_switched_on_by_a_key(tmp_path: Path) -> None:
    """With REINFORCE++ instead of GRPO: one more objective for the time of one run."""
    small = EXAMPLES / "small"
    save_tiny(tmp_path / "model", hidden_size=64)
    made = [sys.executable, str(small / "make_data.py"), str(tmp_path / "data"), "--train", "8", "--val", "2"]
    subprocess.run(made, check=True, timeout=120)
    # What makes it a CPU run of two steps; data, reward, n and the length of prompts stay the example's.
    cpu = [
        change
        for change in overrides(tmp_path)
        if not change.startswith(
            ("data.train_files", "data.val_files", "data.max_prompt", "reward.custom", "actor_rollout_ref.rollout.n=")
        )
    ]
    command = ["bash", str(small / "run.sh"), *cpu, "data.shuffle=False", "trainer.val_before_train=True"]
    refine = ["+refine=matched_4", "refine.trace_dir=trace", "algorithm.adv_estimator=reinforce_plus_plus"]
    ran = run_command(
        tmp_path, [*command, *refine], PYTHON=sys.executable, MODEL=f"{tmp_path}/model", DATA=f"{tmp_path}/data"
    )
    assert ran.returncode == 0, ran.stdout[-6000:]
    run = Run(tmp_path, ran.stdout)
    assert "N=4 drafts + G=4 refinements = 8 completions per prompt, as many as the plain run samples" in run.output
    for step in (1, 2):
        rows = Counter(line["input"] for line in run.trained[step])
        assert sorted(rows.values()) == [4] * 4
        assert all(TEMPLATE_IS_IN in text for text in rows)
        assert run.log[step]["refine/completions"] == 4 * 8
        assert "actor/grad_norm" in run.log[step]


def test_the_small_reward_is_the_verifiers_own(tmp_path: Path) -> None:
    make, reward = _load(EXAMPLES / "small" / "make_data.py"), _load(EXAMPLES / "small" / "reward.py")
    [row] = make.rows(1, seed=3)
    truth = row["reward_model"]["ground_truth"]
    assert reward.compute_score(row["data_source"], f"It is {truth}", truth, row["extra_info"]) == 1.0
    assert reward.compute_score(row["data_source"], "It is 1000000", truth, row["extra_info"]) < 1.0


def test_the_papers_recipe_is_a_configuration_of_this_verl(tmp_path: Path) -> None:
    """Composed by the host's own command, and prepared as its first second would."""
    folder = EXAMPLES / "igrpo_7b"
    ran = subprocess.run(
        ["bash", str(folder / "run.sh"), "--cfg", "job"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    from omegaconf import OmegaConf

    from refine_wrapper_verl.settings import prepare

    config = OmegaConf.create(ran.stdout[ran.stdout.index("actor_rollout_ref:") :])
    settings = prepare(config)
    assert (settings.num_drafts, settings.max_reward) == (4, 2.0)
    assert config.actor_rollout_ref.rollout.n == 4
    assert config.actor_rollout_ref.rollout.prompt_length == 5632  # room for a whole draft: nothing had to be changed


def test_the_papers_data(tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(json.dumps({"problem": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(3))
    )
    command = [sys.executable, str(EXAMPLES / "igrpo_7b" / "make_data.py"), str(tmp_path / "data")]
    subprocess.run([*command, "--train", str(problems), "--val", str(problems)], check=True, timeout=120)
    rows = pandas.read_parquet(tmp_path / "data" / "train.parquet")
    assert list(rows["reward_model"].map(lambda label: label["ground_truth"])) == ["1", "2", "3"]
    assert "\\boxed{}" in rows["prompt"][0][0]["content"]
