"""What the core knows of veRL, without importing it."""

from __future__ import annotations

from collections.abc import Mapping

from refine_wrapper.hosts.adapter import Adapter, Launch, ObjectiveSettings
from refine_wrapper.plugins.hookspecs import hookimpl
from refine_wrapper_verl.objectives import OBJECTIVES

_WORKER = "verl.experimental.agent_loop:AgentLoopWorker"
_MANAGER = "verl.experimental.agent_loop:AgentLoopManager"
# A Ray actor class; the class that was decorated is its attribute __ray_actor_class__.
_WORKER_TQ = "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_actor_class__"

ADAPTER = Adapter(
    host="verl",
    distribution="verl",
    supported=("0.9.0", "0.10"),
    patches={"verl.utils.config": "refine_wrapper_verl.switch:switch_validation"},
    seam=(
        f"{_WORKER}._run_agent_loop(self, sampling_params, trajectory, *, agent_name, trace, **kwargs)",
        f"{_WORKER}._agent_loop_postprocess(self, output, validate, **kwargs)",
        f"{_WORKER}._compute_score(self, outputs, kwargs)",
        f"{_WORKER}.generate_sequences(self, batch)",
        f"{_WORKER_TQ}._run_prompt(self, prompt, sampling_params, trajectory, trace)",
        f"{_WORKER_TQ}._agent_loop_postprocess(self, output, validate, **kwargs)",
        f"{_MANAGER}.generate_sequences(self, prompts)",
        f"{_MANAGER}._init_agent_loop_workers(self)",
        "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ.generate_sequences(self, prompts)",
        "verl.utils.tracking:Tracking.log(self, data, step, backend)",
        "verl.utils.tracking:Tracking.finish(self, exit_code)",
        "verl.utils.config:validate_config(config, use_reference_policy, use_critic)",
    ),
    group_size_flag="actor_rollout_ref.rollout.n",
    launch=Launch(
        arguments={
            "completions": ("actor_rollout_ref.rollout.n={completions}",),
            "seed": (
                "data.seed={seed}",
                "actor_rollout_ref.actor.data_loader_seed={seed}",
                "actor_rollout_ref.rollout.seed={seed}",
                "critic.data_loader_seed={seed}",
            ),
            # An epoch has at least one step: so many epochs are enough for them, whatever the size of the data.
            "steps": ("trainer.total_training_steps={steps}", "trainer.total_epochs={steps}"),
            # veRL saves at the last step whatever save_freq is, if it is more than 0.
            "output": (
                "trainer.default_local_dir={output}",
                "trainer.resume_mode=disable",
                "trainer.save_freq=1000000000",
                "actor_rollout_ref.actor.checkpoint.save_contents=[hf_model]",
            ),
            "tensorboard": ("trainer.logger=[console,tensorboard]",),
        },
        variables={"TENSORBOARD_DIR": "{tensorboard}"},
        models=("global_step_*/actor/huggingface",),
        metrics={
            "reward": "critic/score/mean",
            "entropy": "actor/entropy",
            "loss": "actor/pg_loss",
            "completion_length": "response_length/mean",
        },
    ),
)


@hookimpl
def register_adapters() -> Mapping[str, Adapter]:
    return {"verl": ADAPTER}


@hookimpl
def register_objectives() -> Mapping[str, Mapping[str, ObjectiveSettings]]:
    return {name: {"verl": settings} for name, settings in OBJECTIVES.items()}
