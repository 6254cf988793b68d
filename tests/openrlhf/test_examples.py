"""The examples as users run them, on a CPU with tiny models; and rewards in OpenRLHF's form."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from refine_testing.openrlhf_runs import CPU_HOST, Workshop, drafts_of, refinements_of

from refine_wrapper.core.trace import read_trace
from refine_wrapper_openrlhf import make_reward_func

EXAMPLES = Path(__file__).parents[2] / "examples" / "openrlhf"
ON_A_CPU = ("--ds.attn_implementation", "eager", "--vllm.sync_backend", "gloo")


@pytest.mark.timeout(700)
def test_the_small_run(workshop: Workshop) -> None:
    folder = workshop.folder()
    subprocess.run(
        [sys.executable, str(EXAMPLES / "small" / "prepare.py"), "--problems", "4"], cwd=folder, check=True, timeout=400
    )
    printed = subprocess.run(
        ["bash", str(EXAMPLES / "small" / "train.sh"), *ON_A_CPU],
        env={**os.environ, "PYTHON": "echo"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    [command] = [line for line in printed.splitlines() if "train_ppo_ray" in line]
    run = workshop.run_in_process(folder, *shlex.split(command))
    assert run.code == 0, run.screen[-4000:]
    assert "N=4 drafts + G=4 refinements = 8 completions per prompt, as many as the plain run samples" in run.screen
    groups = read_trace(folder / "outputs" / "trace")
    assert len(groups) == 4
    assert all(len(drafts_of(group)) == len(refinements_of(group)) == 4 for group in groups)
    assert len(run.steps) == 2
    assert (folder / "outputs" / "model" / "model.safetensors").exists()


def test_the_papers_recipe_fits_together(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where processes on GPUs would start: data, flags, budget, lengths, reward."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"problem": "What is 1 + 1?", "answer": "2"}) + "\n")
    prepare = [sys.executable, str(EXAMPLES / "igrpo_7b" / "prepare.py"), str(problems)]
    subprocess.run(prepare, cwd=tmp_path, check=True, timeout=120)
    [row] = [json.loads(line) for line in (tmp_path / "math.jsonl").read_text().splitlines()]
    assert row["label"] == "2"

    script = EXAMPLES / "igrpo_7b" / "train.sh"
    printed = subprocess.run(
        ["bash", str(script)],
        env={"PATH": "/usr/bin:/bin", "PYTHON": "echo", "MODEL": workshop.model},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    command = shlex.split(printed)
    assert command[:2] == ["-m", "refine_wrapper_openrlhf.train_ppo_ray"]
    stop = "import ray, runpy; ray.is_initialized = lambda: print('would train') or exit(); "
    code = stop + f"runpy.run_module({command[1]!r}, run_name='__main__', alter_sys=True)"
    started = subprocess.run(
        [sys.executable, "-c", code, *command[2:]],
        cwd=tmp_path,
        env={**workshop.environment(tmp_path, 1), "PYTHONPATH": f"{CPU_HOST}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "would train" in started.stdout, started.stderr[-3000:]
    assert "--rollout.n_samples_per_prompt 4 --train.batch_size 512" in started.stderr


def test_rewards_of_refine_wrapper_in_openrlhfs_form() -> None:
    from refine_wrapper.rewards.weighted import weighted

    reward_func = make_reward_func(weighted(("math", 1.0), ("format", 1.0), name="both"))
    prompt = "<|im_start|>user\nQ, in \\boxed{}<|im_end|>\n<|im_start|>assistant\n"
    paid = reward_func([prompt + "It is \\boxed{2}.<|im_end|>"], [prompt], ["2"])
    assert paid == {"rewards": [2.0], "scores": [2.0], "extra_logs": {"both": [2.0], "math/timeouts": [0.0]}}
    assert reward_func([prompt + "It is 3.<|im_end|>"], [prompt], ["2"])["rewards"] == [0.0]


def test_a_reward_that_applies_to_nothing_says_so() -> None:
    def nothing(**_: object) -> list[float | None]:
        return [None]

    with pytest.raises(ValueError, match=r"'nothing' applies to no answer with the label '2'"):
        make_reward_func(nothing)(["q"], ["q"], ["2"])
