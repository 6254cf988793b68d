"""What the core knows of OpenRLHF, without importing it."""

from __future__ import annotations

from collections.abc import Mapping

from refine_wrapper.adapter import Adapter, ObjectiveSettings
from refine_wrapper.hookspecs import hookimpl
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
        )
    }


@hookimpl
def register_objectives() -> Mapping[str, Mapping[str, ObjectiveSettings]]:
    return {name: {"openrlhf": settings} for name, settings in OBJECTIVES.items()}
