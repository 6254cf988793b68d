"""What the core knows of TRL, without importing it."""

from __future__ import annotations

from collections.abc import Mapping

from refine_wrapper.hosts.adapter import Adapter, Launch, ObjectiveSettings
from refine_wrapper.plugins.hookspecs import hookimpl
from refine_wrapper_trl.objectives import OBJECTIVES

_SWITCH = "refine_wrapper_trl.switch"
_TRAINERS = ("trl.trainer.grpo_trainer:GRPOTrainer", "trl.trainer.rloo_trainer:RLOOTrainer")
_METHODS = (
    "_generate_and_score_completions(self, inputs)",
    "_generate(self, prompts)",
    "_calculate_rewards(self, inputs, prompts, completions, completion_ids_list)",
    "_tokenize_prompts(self, prompts)",
)


@hookimpl
def register_adapters() -> Mapping[str, Adapter]:
    return {
        "trl": Adapter(
            host="trl",
            distribution="trl",
            supported=("1.0.0", "1.17"),
            patches={
                "trl.trainer.grpo_config": f"{_SWITCH}:switch_config",
                "trl.trainer.rloo_config": f"{_SWITCH}:switch_config",
                "trl.trainer.grpo_trainer": f"{_SWITCH}:switch_trainer",
                "trl.trainer.rloo_trainer": f"{_SWITCH}:switch_trainer",
            },
            seam=tuple(f"{trainer}.{method}" for trainer in _TRAINERS for method in _METHODS),
            group_size_flag="num_generations",
            launch=Launch(
                arguments={
                    "completions": ("--num_generations", "{completions}"),
                    "seed": ("--seed", "{seed}"),
                    "steps": ("--max_steps", "{steps}"),
                    "output": ("--output_dir", "{output}"),
                    "tensorboard": ("--report_to", "tensorboard", "--logging_steps", "1"),
                },
                variables={"TENSORBOARD_LOGGING_DIR": "{tensorboard}"},
                models=(".", "checkpoint-*"),
                train_prefix="train/",
                metrics={
                    "reward": "train/reward",
                    "entropy": "train/entropy",
                    "loss": "train/loss",
                    "completion_length": "train/completions/mean_length",
                },
            ),
        )
    }


@hookimpl
def register_objectives() -> Mapping[str, Mapping[str, ObjectiveSettings]]:
    return {name: {"trl": settings} for name, settings in OBJECTIVES.items()}
