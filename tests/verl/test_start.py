"""What happens in the driver's first second, in real Hydra applications: the command states keys, and nothing else."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

VERL: Any = importlib.util.find_spec("verl")
HOST = Path(VERL.origin).parent


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, f"hydra.run.dir={folder}/hydra"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
        env={**os.environ, "HYDRA_FULL_ERROR": "1"},
    )


def _application(folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A user's own Hydra application that prints what its function gets."""
    script = folder / "recipe.py"
    script.write_text(
        f"{before}import hydra\nfrom omegaconf import OmegaConf\n"
        "@hydra.main(config_path=None, version_base=None)\n"
        "def main(config):\n    print('its configuration:')\n    print(OmegaConf.to_yaml(config))\n"
        "main()\n"
    )
    return _run(folder, sys.executable, str(script), *arguments)


def _configuration(folder: Path, *keys: str) -> DictConfig:
    ran = _application(folder, f"--config-path={HOST}/trainer/config", "--config-name=ppo_trainer", *keys)
    assert ran.returncode == 0, ran.stderr
    config = OmegaConf.create(ran.stdout.split("its configuration:\n")[1])
    assert isinstance(config, DictConfig)
    return config


def test_single_keys_do_all_that_the_group_does(tmp_path: Path) -> None:
    keys = ("+refine.num_drafts=4", "+refine.match_budget=true", "+refine.objective=dapo")
    config = _configuration(tmp_path, *keys, "actor_rollout_ref.rollout.n=8")
    rollout = config.actor_rollout_ref.rollout
    assert rollout.agent.agent_loop_manager_class == "refine_wrapper_verl.RefineAgentLoopManager"
    assert rollout.n == 4
    assert rollout.prompt_length > config.data.max_prompt_length
    assert config.actor_rollout_ref.actor.clip_ratio_high == 0.28


def test_an_objective_is_trained_also_without_refinement(tmp_path: Path) -> None:
    config = _configuration(tmp_path, "+refine.enabled=false", "+refine.objective=dr_grpo")
    assert config.actor_rollout_ref.actor.loss_agg_mode == "seq-mean-token-sum-norm"
    assert config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class") is None


def test_what_cannot_work_ends_the_command(tmp_path: Path) -> None:
    """Hydra alone would make a warning of it and train something else."""
    ran = _application(
        tmp_path, f"--config-path={HOST}/trainer/config", "--config-name=ppo_trainer", "+refine.num_draft=4"
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("refine: unknown setting 'num_draft'. Did you mean 'num_drafts'?")
    assert "its configuration" not in ran.stdout


@pytest.fixture
def own_file(tmp_path: Path) -> tuple[str, str]:
    """A user's own YAML file on veRL's, which states our keys; no word of the command line is veRL's or ours."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        f"hydra:\n  searchpath: [file://{HOST}/trainer/config]\n"
        "defaults: [ppo_trainer, _self_]\nrefine: {num_drafts: 3}\n"
    )
    return f"--config-path={folder}", "--config-name=mine"


def test_keys_in_a_file_of_ones_own(tmp_path: Path, own_file: tuple[str, str]) -> None:
    ran = _application(tmp_path, *own_file, "actor_rollout_ref.rollout.n=4")
    assert ran.returncode == 0, ran.stderr
    assert "refine-wrapper: on for veRL. N=3 drafts + G=4 refinements" in ran.stderr


def test_a_job_of_a_sweep_is_told_what_to_add(tmp_path: Path, own_file: tuple[str, str]) -> None:
    """Hydra copies a job's configuration before anybody may change it. With what is said it runs."""
    sweep = ("--multirun", "actor_rollout_ref.rollout.n=4", f"hydra.sweep.dir={tmp_path}/sweep")
    ran = _application(tmp_path, *own_file, *sweep)
    assert ran.returncode == 1
    assert ran.stderr.startswith("refine: in a sweep (--multirun) each job must state")
    added = ran.stderr.strip().rpartition("Add to the command: ")[2].split()
    assert {key.partition("=")[0] for key in added} == {
        "++actor_rollout_ref.rollout.prompt_length",
        "++actor_rollout_ref.rollout.agent.agent_loop_manager_class",
    }
    ran = _application(tmp_path, *own_file, *sweep, *added)
    assert ran.returncode == 0, ran.stderr
    assert "its configuration" in ran.stdout


def test_a_sweep_that_does_not_refine_is_left_alone(tmp_path: Path) -> None:
    host = (f"--config-path={HOST}/trainer/config", "--config-name=ppo_trainer")
    sweep = ("--multirun", f"hydra.sweep.dir={tmp_path}/refine.sweep", "trainer.project_name=refine.mine")
    ran = _application(tmp_path, *host, *sweep)
    assert (ran.returncode, ran.stderr) == (0, "")


# STANDS IN for a running cluster: what the store says of a run.
RAY = (
    "import ray, ray.experimental.internal_kv as store\nray.is_initialized = lambda: True\n"
    "store._internal_kv_get = lambda key, namespace=None: {}\n"
)


@pytest.mark.parametrize(("note", "code"), [("None", 1), ("b'1'", 0)], ids=["never-asked", "asked"])
def test_a_trainer_that_never_asks_for_our_manager(tmp_path: Path, note: str, code: int) -> None:
    """A recipe with a manager of its own trains plain; it must not end as if it had refined."""
    host = (f"--config-path={HOST}/trainer/config", "--config-name=ppo_trainer", "+refine.num_drafts=4")
    ran = _application(tmp_path, *host, before=RAY.format(note))
    assert ran.returncode == code, ran.stderr
    assert ("refine: nothing was refined. This trainer made an agent loop manager of its own" in ran.stderr) == bool(
        code
    )


def test_an_application_that_is_not_verl_keeps_its_own_keys(tmp_path: Path) -> None:
    ran = _application(tmp_path, "+refine.level=3")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "level: 3" in ran.stdout


def test_the_manager_alone_is_enough(tmp_path: Path) -> None:
    manager = "refine_wrapper_verl.RefineAgentLoopManager"
    config = _configuration(tmp_path, f"+actor_rollout_ref.rollout.agent.agent_loop_manager_class={manager}")
    assert config.refine.num_drafts == 4
    assert config.actor_rollout_ref.rollout.prompt_length > config.data.max_prompt_length


@pytest.mark.parametrize(
    ("launcher", "keys"),
    [
        ((), ("+refine.num_drafts=4",)),
        ((sys.executable, "-m", "refine_wrapper.cli", "run", "--refine.num_drafts", "4", "--"), ()),
    ],
    ids=["keys", "launched"],
)
def test_fully_async_policy_is_refused_at_its_start(
    tmp_path: Path, launcher: tuple[str, ...], keys: tuple[str, ...]
) -> None:
    """Its own command. It never asks for our manager, so that refinement would silently not happen."""
    command = (*launcher, sys.executable, "-m", "verl.experimental.fully_async_policy.fully_async_main", *keys)
    ran = _run(tmp_path, *command)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "fully_async_policy makes its own agent loop manager" in ran.stderr
    assert "Ray" not in ran.stderr  # nothing was started
