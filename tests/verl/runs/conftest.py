"""Runs of the unmodified ``verl.trainer.main_ppo``, each made once; the tests read what they wrote.

Starting the host takes most of a run, so one run proves many things.
"""

from __future__ import annotations

import sys

import pytest
from refine_testing.verl_host import Run, row, trained_run, write_data

TRACE = ("refine.trace_dir=trace", "refine.trace_texts=true")


@pytest.fixture(scope="session")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """V1 synchronous, GRPO with a KL loss: N = 4, G = 3, validation before training, a data column that names the loop,
    rewards that fail, a checkpoint at the end. Switched on by the config group alone."""
    folder = tmp_path_factory.mktemp("grpo")
    faults = {1: "raise,ok,nan,ok", 2: "raise,raise,raise,raise"}
    loops = {3: "tool_agent"}
    rows = [
        row(number, faults=faults.get(number, ""), agent_name=loops.get(number, "single_turn_agent"))
        for number in range(8)
    ]
    write_data(folder, rows, [row(number, agent_name="single_turn_agent") for number in (900, 901)])
    return trained_run(
        folder,
        "+refine=best_of_4",
        *TRACE,
        "actor_rollout_ref.rollout.n=3",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.ref.fsdp_config.dtype=float32",
        "actor_rollout_ref.ref.fsdp_config.use_torch_compile=False",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model]",
        "trainer.val_before_train=True",
        "trainer.save_freq=2",
    )


@pytest.fixture(scope="session")
def dapo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """DAPO: clip-higher, token mean, groups of equal reward are evicted and refilled. Two of the first four are such."""
    folder = tmp_path_factory.mktemp("dapo")
    write_data(folder, [row(number, faults="equal" if number in (0, 2) else "") for number in range(16)])
    return trained_run(
        folder,
        "+refine=best_of_4",
        *TRACE,
        "actor_rollout_ref.rollout.n=3",
        "refine.objective=dapo",
    )


@pytest.fixture(scope="session")
def v0(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The legacy trainer with a critic (GAE): 3 groups of 2 rows on 2 workers, so that equal chunks would cut a group."""
    folder = tmp_path_factory.mktemp("v0")
    write_data(folder, [row(number) for number in range(6)])
    return trained_run(
        folder,
        "+refine=best_of_4",
        *TRACE,
        "trainer.use_v1=False",
        "trainer.val_before_train=True",
        "data.train_batch_size=3",
        "actor_rollout_ref.actor.ppo_mini_batch_size=3",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.rollout.agent.num_workers=2",
        "algorithm.adv_estimator=gae",
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


@pytest.fixture(scope="session")
def colocate_async(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Asynchronous, trainer and rollout colocated: prompts are drafted ahead, and weights change under way."""
    folder = tmp_path_factory.mktemp("async")
    write_data(folder, [row(number) for number in range(24)])
    return trained_run(
        folder,
        "+refine=best_of_4",
        *TRACE,
        "trainer.v1.trainer_mode=colocate_async",
        "algorithm.adv_estimator=reinforce_plus_plus_baseline",
        "actor_rollout_ref.rollout.n=3",
        "trainer.total_training_steps=3",
    )


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Switched on by `refine-wrapper run`, the command untouched: RLOO with the GSPO loss, at the plain run's budget."""
    folder = tmp_path_factory.mktemp("launched")
    write_data(folder, [row(number) for number in range(8)])
    flags = {"num_drafts": "4", "match_budget": "true", "trace_dir": "trace", "trace_texts": "true"}
    launcher = (
        *(sys.executable, "-m", "refine_wrapper.cli", "run"),
        *(part for name, value in flags.items() for part in (f"--refine.{name}", value)),
        "--",
    )
    return trained_run(
        folder,
        "actor_rollout_ref.rollout.n=8",
        "algorithm.adv_estimator=rloo",
        "actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        launcher=launcher,
    )
