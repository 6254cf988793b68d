"""The examples as users run them; the small one on a CPU, with a tiny random model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas
import pytest
from refine_testing.verl_host import TEMPLATE_IS_IN, Run

EXAMPLES = Path(__file__).parents[2] / "examples" / "verl"


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(2000)
def test_the_small_run_switched_on_by_a_key(small_example: Run) -> None:
    """Two steps of the example's own script, data and reward."""
    assert "N=4 drafts + G=4 refinements = 8 completions per prompt, as many as the plain" in small_example.output
    for step in (1, 2):
        rows = Counter(line["input"] for line in small_example.trained[step])
        assert sorted(rows.values()) == [4] * 4
        assert all(TEMPLATE_IS_IN in text for text in rows)
        assert small_example.log[step]["refine/completions"] == 4 * 8
        assert "actor/grad_norm" in small_example.log[step]


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


def test_the_papers_reward_on_a_row_of_its_data(tmp_path: Path) -> None:
    """With math-verify beside the antlr4 that Hydra's grammar was made with."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"problem": "Solve $2x = 1$.", "answer": "\\frac{1}{2}"}) + "\n")
    command = [sys.executable, str(EXAMPLES / "igrpo_7b" / "make_data.py"), str(tmp_path / "data")]
    subprocess.run([*command, "--train", str(problems), "--val", str(problems)], check=True, timeout=120)
    [row] = pandas.read_parquet(tmp_path / "data" / "train.parquet").to_dict("records")
    reward = _load(EXAMPLES / "igrpo_7b" / "reward.py")

    def score(text: str) -> dict[str, float]:
        # In a thread, as veRL's reward manager calls it.
        arguments = (row["data_source"], text, row["reward_model"]["ground_truth"], row["extra_info"])
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(reward.compute_score, *arguments).result()

    right = score("<think>Half of 1.</think>\nSo x is \\boxed{0.5}.")
    assert right == {"score": 2.0, "acc": 1.0, "format": 1.0}
    assert score("It is \\boxed{3}.")["acc"] == 0.0


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
