"""Runs of the unmodified ``verl.trainer.main_ppo``, each made once; the tests read what they wrote.

Starting the host takes most of a run, so one run proves many things, and two runs go on at a time: most of a start is one
process after another that imports its packages.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from refine_testing.tiny import save_tiny
from refine_testing.verl_host import SUPPORT, Run, overrides, ran_well, row, run_command, trained_run, write_data

from refine_wrapper_verl.plugin import ADAPTER

TRACE = ("refine.trace_dir=trace", "refine.trace_texts=true")
SAMPLER = (
    f"trainer.v1.sampler.custom_sampler.path={SUPPORT}/refine_testing/verl_sampler.py",
    "trainer.v1.sampler.custom_sampler.name=WritingSampler",
)
EXAMPLES = Path(__file__).parents[2] / "examples" / "verl"

# Rewards of the calls for one prompt, so that a mode has what it looks for (max_reward is 0.5, N is 2, S is 4).
FAULTS = {
    "paper": "",
    "joint": "",
    "on_failure": "wrong,wrong,right,wrong",
    "rescue": "wrong,wrong,wrong,wrong,right,wrong",
    "rounds": "wrong,wrong,wrong,wrong",
}
ONE_BY_ONE = (
    ("dr_grpo", "paper"),
    ("gspo", "joint"),
    ("sapo", "on_failure"),
    ("cispo", "rescue"),
    ("gpg", "joint"),
    ("opo", "on_failure"),
    ("grpo", "rescue"),
    ("grpo", "rounds"),
)
MODES_V0 = ("paper", "joint", "on_failure", "rescue")


def _by_step(modes: tuple[str, ...]) -> tuple[str, ...]:
    return (
        "refine.mode=by_step",
        "refine.mode_options={modes:[" + ",".join(modes) + "]}",
        "refine.plugin_modules=[refine_testing.verl_modes]",
        "refine.num_drafts=2",
        "refine.max_reward=0.5",
        "actor_rollout_ref.rollout.prompt_length=600",  # drafts of a random model are whole, whatever bytes they are
        "actor_rollout_ref.rollout.n=4",
    )


_RUNS: dict[str, Callable[[Path], Run]] = {}
"""In the order in which they are started. Filled while this file is read."""


def _real_run(make: Callable[[Path], Run]) -> Any:
    """A fixture of the function's name: what the run wrote."""
    _RUNS[make.__name__] = make

    @pytest.fixture(scope="session", name=make.__name__)
    def finished(started: Mapping[str, Future[Run]]) -> Run:
        return started[make.__name__].result()

    return finished


@pytest.fixture(scope="session")
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Mapping[str, Future[Run]]]:
    """All runs that the selected tests ask for."""
    wanted = [name for name in _RUNS if any(name in item.fixturenames for item in request.session.items)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = {name: pool.submit(_RUNS[name], tmp_path_factory.mktemp(name)) for name in wanted}
        yield runs
        pool.shutdown(wait=False, cancel_futures=True)
        if not all(run.done() for run in runs.values()):
            for process in psutil.Process().children():  # the tests were ended early; each run ends what it started
                process.kill()


@_real_run
def grpo(folder: Path) -> Run:
    """V1 synchronous, GRPO with a KL loss: N = 4, G = 3, validation before training, a data column that names the loop,
    a tool that is called, rewards that fail and one that hangs, a checkpoint at the end. Switched on by the config group."""
    faults = {1: "raise,ok,nan,ok", 2: "raise,raise,raise,raise", 5: "ok,hang,ok,ok"}
    loops = {3: "tool_agent"}
    rows = [
        row(number, faults=faults.get(number, ""), agent_name=loops.get(number, "single_turn_agent"))
        for number in range(8)
    ]
    write_data(
        folder, rows, [row(number, agent_name="single_turn_agent") for number in (900, 901)], turns_end_early=True
    )
    return trained_run(
        folder,
        "+refine=best_of_4",
        *TRACE,
        *SAMPLER,
        "refine.objective=grpo",
        "refine.draft_timeout=40",
        "data.max_response_length=96",
        "actor_rollout_ref.rollout.n=3",
        f"actor_rollout_ref.rollout.multi_turn.function_tool_path={SUPPORT}/refine_testing/verl_tools.py",
        "actor_rollout_ref.rollout.multi_turn.format=any_text",
        "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=2",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.ref.fsdp_config.dtype=float32",
        "actor_rollout_ref.ref.fsdp_config.use_torch_compile=False",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model]",
        "trainer.val_before_train=True",
        "trainer.save_freq=2",
    )


def _most_probable_tokens(folder: Path, *changes: str) -> Run:
    """A run without chance: two runs of the same settings are equal to the last bit."""
    write_data(folder, [row(number) for number in range(12)])
    return trained_run(
        folder,
        *SAMPLER,
        "actor_rollout_ref.rollout.top_k=1",
        "actor_rollout_ref.rollout.n=2",
        # Equal answers to a prompt: what is left to learn from is the difference between prompts.
        "algorithm.adv_estimator=reinforce_plus_plus",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model]",
        "trainer.total_training_steps=3",
        "trainer.save_freq=3",
        *changes,
    )


@_real_run
def plain(folder: Path) -> Run:
    """The host's own run, without one of our keys."""
    return _most_probable_tokens(folder)


@_real_run
def off(folder: Path) -> Run:
    """The same, with our keys, manager included, and refinement switched off."""
    return _most_probable_tokens(folder, "+refine=best_of_4", "refine.enabled=false")


@_real_run
def dapo(folder: Path) -> Run:
    """DAPO: clip-higher, token mean, groups of equal reward are evicted and refilled. Two of the first four are such."""
    write_data(folder, [row(number, faults="equal" if number in (0, 2) else "") for number in range(16)])
    return trained_run(
        folder,
        "+refine=best_of_4",
        *TRACE,
        "actor_rollout_ref.rollout.n=3",
        "refine.objective=dapo",
    )


@_real_run
def v0(folder: Path) -> Run:
    """The legacy trainer with a critic (GAE), another mode each step: 3 groups of 4 rows on 2 workers, so that equal chunks
    would cut a group."""
    write_data(folder, [row(number, faults=FAULTS[MODES_V0[number // 3]]) for number in range(3 * len(MODES_V0))])
    return trained_run(
        folder,
        "+refine=best_of_4",
        *TRACE,
        *_by_step(MODES_V0),
        "refine.objective=ppo",
        "trainer.use_v1=False",
        "trainer.val_before_train=True",
        "data.train_batch_size=3",
        f"trainer.total_training_steps={len(MODES_V0)}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=3",
        "actor_rollout_ref.rollout.agent.num_workers=2",
        f"critic.model.path={folder}/model",
        "+critic.model.override_config.attn_implementation=sdpa",
        "critic.model.use_remove_padding=False",
        "critic.model.enable_gradient_checkpointing=False",
        "critic.strategy=fsdp2",
        "critic.ppo_micro_batch_size_per_gpu=2",
        "critic.fsdp.dtype=float32",
        "critic.fsdp.model_dtype=fp32",
        "critic.fsdp.use_torch_compile=False",
    )


@_real_run
def colocate_async(folder: Path) -> Run:
    """Asynchronous, trainer and rollout colocated: prompts are drafted ahead, and weights change under way. By single
    keys, without the config group."""
    write_data(folder, [row(number) for number in range(24)])
    return trained_run(
        folder,
        *(f"+{key}" for key in ("refine.num_drafts=4", "refine.objective=reinforce++-baseline", *TRACE)),
        "trainer.v1.trainer_mode=colocate_async",
        "actor_rollout_ref.rollout.n=3",
        "trainer.total_training_steps=3",
    )


@_real_run
def launched(folder: Path) -> Run:
    """Switched on by `refine-wrapper run`, with what an ablation adds to the command: RLOO, at the plain run's budget."""
    write_data(folder, [row(number) for number in range(8)])
    flags = {
        "num_drafts": "4",
        "match_budget": "true",
        "objective": "rloo",
        "trace_dir": "trace",
        "trace_texts": "true",
    }
    launcher = (
        *(sys.executable, "-m", "refine_wrapper.cli", "run"),
        *(part for name, value in flags.items() for part in (f"--refine.{name}", value)),
        "--",
    )
    launch: Any = ADAPTER.launch
    values = {"completions": 8, "seed": 7, "steps": 2, "output": folder / "trained", "tensorboard": folder / "events"}
    return trained_run(
        folder,
        *(argument.format(**values) for arguments in launch.arguments.values() for argument in arguments),
        launcher=launcher,
        **{name: value.format(**values) for name, value in launch.variables.items()},
    )


@_real_run
def one_by_one(folder: Path) -> Run:
    """A recipe with a main and a trainer of its own, which trains another objective each step, in another mode."""
    objectives, modes = zip(*ONE_BY_ONE, strict=True)
    write_data(folder, [row(number, faults=FAULTS[modes[number // 4]]) for number in range(4 * len(modes))])
    return trained_run(
        folder,
        "+refine=best_of_4",
        *TRACE,
        *SAMPLER,
        *_by_step(modes),
        "trainer.v1.trainer_mode=objective_by_objective",
        f"+trainer.v1.objective_by_objective.names=[{','.join(objectives)}]",
        f"trainer.total_training_steps={len(modes)}",
        module="refine_testing.verl_recipe",
    )


@_real_run
def small_example(folder: Path) -> Run:
    """examples/verl/small as a user runs it, with REINFORCE++."""
    small = EXAMPLES / "small"
    save_tiny(folder / "model", hidden_size=64)
    made = [sys.executable, str(small / "make_data.py"), str(folder / "data"), "--train", "8", "--val", "2"]
    subprocess.run(made, check=True, timeout=120)
    # What makes it a CPU run of two steps; data, reward, n and the length of prompts stay the example's.
    of_the_example = ("data.train_files", "data.val_files", "data.max_prompt", "reward.custom")
    cpu = [
        change
        for change in overrides(folder)
        if not change.startswith((*of_the_example, "actor_rollout_ref.rollout.n=", "algorithm.adv_estimator="))
    ]
    command = ["bash", str(small / "run.sh"), *cpu, "data.shuffle=False", "trainer.val_before_train=True"]
    refine = ["+refine=matched_4", "refine.trace_dir=trace", "refine.objective=reinforce++"]
    ran = run_command(
        folder, [*command, *refine], PYTHON=sys.executable, MODEL=f"{folder}/model", DATA=f"{folder}/data"
    )
    return ran_well(folder, ran)
