"""Runs the unmodified ``python -m verl.trainer.main_ppo`` on a CPU, small, and reads what it wrote.

Real vLLM, FSDP2 on gloo, TransferQueue, reward loop and weight sync; only the device is replaced (``verl_cpu``).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

import refine_testing.verl_reward

SUPPORT = Path(refine_testing.verl_reward.__file__).parents[1]
TEMPLATE_IS_IN = "Here is an attempt at this problem."
SECONDS = 900
"""Far more than a run takes on an idle machine; a run that hangs must not hang the session."""

_ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": "refine_testing.verl_cpu",
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
    "HYDRA_FULL_ERROR": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_worker_niceness": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # other processes' memory is no reason to kill ours
    # Otherwise Ray starts a python for every CPU it is told of, most of them for nothing.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
}


def question(number: int) -> str:
    """The text of one question of the test data."""
    return f"Q{number}: {number}+{number + 1}="


def row(number: int, **changes: Any) -> dict[str, Any]:
    """One row of a veRL data set; ``faults`` and other extras go into ``extra_info``, which rewards get."""
    prompt = changes.pop("prompt", [{"role": "user", "content": question(number)}])
    columns = {name: changes.pop(name) for name in ("agent_name",) if name in changes}
    return {
        "data_source": "tiny",
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(2 * number + 1)},
        "extra_info": {"index": number, "faults": "", **changes},
        **columns,
    }


def overrides(folder: Path) -> list[str]:
    """Hydra overrides that make a run small, on the data and model in ``folder``."""
    rollout, actor = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
    return [
        f"actor_rollout_ref.model.path={folder}/model",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/val.parquet",
        "data.train_batch_size=4",
        "data.shuffle=False",
        "data.max_prompt_length=64",
        "data.max_response_length=16",
        "data.dataloader_num_workers=0",
        "data.filter_overlong_prompts_workers=1",
        f"reward.custom_reward_function.path={SUPPORT}/refine_testing/verl_reward.py",
        "reward.num_workers=1",
        "algorithm.use_kl_in_reward=False",
        "algorithm.adv_estimator=grpo",
        f"{actor}.strategy=fsdp2",
        f"{actor}.optim.lr=1e-2",
        f"{actor}.ppo_mini_batch_size=4",
        f"{actor}.ppo_micro_batch_size_per_gpu=2",
        f"{actor}.use_kl_loss=False",
        f"{actor}.fsdp_config.dtype=float32",
        f"{actor}.fsdp_config.model_dtype=fp32",
        f"{actor}.fsdp_config.use_torch_compile=False",
        f"{actor}.use_torch_compile=False",
        f"{rollout}.name=vllm",
        f"{rollout}.n=4",
        f"{rollout}.dtype=float32",
        f"{rollout}.calculate_log_probs=True",
        f"{rollout}.max_num_batched_tokens=2048",
        f"{rollout}.max_num_seqs=32",
        f"{rollout}.enforce_eager=True",
        f"{rollout}.free_cache_engine=False",
        f"+{rollout}.enable_sleep_mode=False",
        f"{rollout}.load_format=auto",
        f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.log_prob_micro_batch_size_per_gpu=2",
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes=16",
        f"{rollout}.agent.num_workers=1",
        f"hydra.run.dir={folder}/hydra",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        "trainer.nnodes=1",
        "trainer.total_training_steps=2",
        "trainer.total_epochs=1",
        "trainer.logger=[console,file]",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir={folder}/checkpoints",
        f"trainer.rollout_data_dir={folder}/rollouts",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "ray_kwargs.ray_init.num_cpus=16",
        "+ray_kwargs.ray_init.num_gpus=1",
        "+ray_kwargs.ray_init.include_dashboard=False",
    ]


def write_data(
    folder: Path,
    rows: list[dict[str, Any]],
    validation: list[dict[str, Any]] | None = None,
    *,
    turns_end_early: bool = False,
) -> None:
    """A tiny model and the data sets of a run. A random model ends its turns only where many tokens end them."""
    import pandas

    from refine_testing.tiny import save_tiny

    save_tiny(folder / "model", hidden_size=64)  # head_dim 32: the CPU backend of vLLM refuses 16
    if turns_end_early:
        path = folder / "model" / "generation_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({**settings, "eos_token_id": [settings["eos_token_id"], *range(20, 60)]}))
    pandas.DataFrame(rows).to_parquet(folder / "train.parquet")
    pandas.DataFrame(validation or [row(900), row(901)]).to_parquet(folder / "val.parquet")


def main_ppo(
    folder: Path,
    *changes: str,
    launcher: tuple[str, ...] = (),
    module: str = "verl.trainer.main_ppo",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the host, or a recipe on it, on what :func:`write_data` wrote."""
    command = [*launcher, sys.executable, "-m", module, *overrides(folder), *changes]
    return run_command(folder, command, **environment)


def run_command(folder: Path, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that starts the host; all its processes are gone when this returns."""
    path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
    # Sockets live in the temporary folder, and their paths may have 107 bytes: pytest's own folders are too deep.
    scratch = tempfile.mkdtemp(prefix="rw-")
    variables = {
        **os.environ,
        **_ENVIRONMENT,
        "PYTHONPATH": path,
        "TMPDIR": scratch,
        "RAY_TMPDIR": scratch,
        "VERL_FILE_LOGGER_PATH": str(folder / "log.jsonl"),
        "REFINE_TESTING_CALLS": str(folder / "calls.jsonl"),
        "REFINE_TESTING_QUEUE": str(folder / "queue.jsonl"),
        "REFINE_TESTING_TOOLS": str(folder / "tools.txt"),
        **environment,
    }
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=variables,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            _end_rest(scratch)
            shutil.rmtree(scratch, ignore_errors=True)
    return subprocess.CompletedProcess(command, code, (folder / "output.txt").read_text(errors="replace"))


def _end_rest(scratch: str) -> None:
    """End what a run left. Ray's processes are in sessions of their own; that run's are known by their RAY_TMPDIR."""
    own = [process for process in psutil.process_iter() if _variable(process, "RAY_TMPDIR") == scratch]
    _, alive = psutil.wait_procs(own, timeout=2)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=30)


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except (psutil.Error, OSError):
        return None


@dataclass(frozen=True)
class Run:
    """What a run wrote."""

    folder: Path
    output: str

    @cached_property
    def log(self) -> dict[int, dict[str, float]]:
        """The host's own file logger, or its TensorBoard files: step -> metrics."""
        if not (self.folder / "log.jsonl").exists():
            return self._tensorboard()
        lines = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        merged: dict[int, dict[str, float]] = defaultdict(dict)
        for line in lines:
            merged[line["step"]].update(line["data"])
        return dict(merged)

    def _tensorboard(self) -> dict[int, dict[str, float]]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self.folder / "events"))
        events.Reload()
        found: dict[int, dict[str, float]] = defaultdict(dict)
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                found[event.step][name] = event.value
        return dict(found)

    @cached_property
    def queue(self) -> dict[int, dict[str, Any]]:
        """All that lay in TransferQueue when the batch of a step was taken from it (``WritingSampler``)."""
        lines = [json.loads(line) for line in (self.folder / "queue.jsonl").read_text().splitlines()]
        return {line["step"]: line for line in lines}

    @cached_property
    def calls(self) -> list[dict[str, Any]]:
        """Every call of the reward function."""
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    @cached_property
    def trained(self) -> dict[int, list[dict[str, Any]]]:
        """What the trainer trained on, from its own dump: step -> rows (input, output, gts, score, uid)."""
        steps = {int(file.stem): file for file in (self.folder / "rollouts").glob("*.jsonl")}
        return {n: [json.loads(line) for line in file.read_text().splitlines()] for n, file in sorted(steps.items())}

    @cached_property
    def groups(self) -> list[dict[str, Any]]:
        """Our trace."""
        lines = (self.folder / "trace" / "groups.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def trained_groups(self, step: int) -> dict[str, list[dict[str, Any]]]:
        """The rows of one step by veRL's uid of their group (V1: the key is uid_session_output)."""
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in self.trained[step]:
            groups[line["uid"].split("_")[0]].append(line)
        return dict(groups)


def trained_run(
    folder: Path,
    *changes: str,
    launcher: tuple[str, ...] = (),
    module: str = "verl.trainer.main_ppo",
    **environment: str,
) -> Run:
    """Run and expect success."""
    return ran_well(folder, main_ppo(folder, *changes, launcher=launcher, module=module, **environment))


def ran_well(folder: Path, ran: subprocess.CompletedProcess[str]) -> Run:
    """What a run wrote, if it succeeded."""
    assert ran.returncode == 0, ran.stdout[-6000:]
    return Run(folder, ran.stdout)
