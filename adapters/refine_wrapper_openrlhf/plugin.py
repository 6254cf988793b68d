"""What the core knows of OpenRLHF, without importing it."""

from __future__ import annotations

from collections.abc import Mapping

from refine_wrapper.hosts.adapter import Adapter, Launch, ObjectiveSettings
from refine_wrapper.plugins.hookspecs import hookimpl
from refine_wrapper_openrlhf.objectives import OBJECTIVES

_EXECUTOR = "openrlhf.utils.agent:SingleTurnAgentExecutor"
_EXECUTE = "self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images"
_GENERATE = "self, dataloader_iter, num_prompts, dynamic_filtering, **generate_kwargs"
_GENERATOR = "openrlhf.trainer.ppo_utils.samples_generator:SamplesGenerator"


@hookimpl
def register_adapters() -> Mapping[str, Adapter]:
    return {
        "openrlhf": Adapter(
            host="openrlhf",
            distribution="openrlhf",
            supported=("0.10.4", "0.12"),
            # The command line imports this module before it parses its flags; see refine_wrapper_openrlhf.switch.
            patches={"openrlhf.trainer.ray.launcher": "refine_wrapper_openrlhf.switch:switch_command_line"},
            seam=(
                f"{_EXECUTOR}.execute({_EXECUTE})",
                f"{_EXECUTOR}._fetch_rewards_via_func(self, queries_list, prompts_list, labels_list)",
                f"{_EXECUTOR}._fetch_rewards_via_http(self, queries_list, prompts_list, labels_list)",
                f"{_GENERATOR}.generate_samples(self, **generate_kwargs)",
                f"{_GENERATOR}.generate_eval_samples(self, **generate_kwargs)",
                f"{_GENERATOR}._generate_vllm({_GENERATE})",
                f"{_GENERATOR}._process_response_into_experience(self, response, **generate_kwargs)",
                "openrlhf.trainer.ppo_trainer:SamplesGenerator",
                "openrlhf.trainer.ppo_trainer_async:SamplesGenerator",
            ),
            group_size_flag="--rollout.n_samples_per_prompt",
            launch=Launch(
                # No number of steps: OpenRLHF has none to set, --data.max_samples and --train.num_episodes make it.
                arguments={
                    "completions": ("--rollout.n_samples_per_prompt", "{completions}"),
                    "seed": ("--train.seed", "{seed}"),
                    "output": ("--ckpt.output_dir", "{output}", "--ckpt.path", "{output}/checkpoints"),
                    "tensorboard": ("--logger.tensorboard_dir", "{tensorboard}", "--logger.logging_steps", "1"),
                },
                models=(".",),
                train_prefix="train/",
                metrics={
                    "reward": "train/rollout/reward_mean",
                    "entropy": "train/entropy_loss",  # with --actor.entropy_coef; 0 logs it alone
                    "loss": "train/policy_loss",
                    "completion_length": "train/rollout/response_length_mean",
                },
            ),
        )
    }


@hookimpl
def register_objectives() -> Mapping[str, Mapping[str, ObjectiveSettings]]:
    return {name: {"openrlhf": settings} for name, settings in OBJECTIVES.items()}
