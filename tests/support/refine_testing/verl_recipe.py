"""A recipe on veRL, as its users write them: an own main, an own task runner, an own trainer.

The trainer takes another objective each step, as ``refine.objective=NAME`` would: the objective's keys into the
configuration, the advantage from it, the loss made as the actor's worker makes it. So one start of a host serves many.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import hydra
import ray
from omegaconf import DictConfig, OmegaConf
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.workers.utils.losses import ppo_loss

from refine_wrapper.hosts.objectives import settings_on
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper_verl.objectives import OBJECTIVES, apply_objective

MODE = "objective_by_objective"


class ObjectiveByObjective(PPOTrainerSync):
    """Step k trains the k-th of ``trainer.v1.objective_by_objective.names``."""

    def __init__(self, config: DictConfig) -> None:
        self._names: list[str] = list(config.trainer.v1[MODE].names)
        config.trainer.v1.trainer_mode = "sync"
        self._untouched = copy.deepcopy(config)
        super().__init__(config)

    def on_step_begin(self) -> None:
        super().on_step_begin()
        for objective in OBJECTIVES.values():
            for key in objective.settings or {}:
                OmegaConf.update(self.config, key, OmegaConf.select(self._untouched, key))
        name = self._names[self.global_steps - 1]
        apply_objective(self.config, name, settings_on("verl", name, Plugins()))
        actor: Any = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.actor_rollout_wg.set_loss_fn(partial(ppo_loss, config=actor))
        print(f"step {self.global_steps} trains {name}")


class Runner(TaskRunnerV1.__ray_actor_class__):
    def run(self, config: DictConfig) -> None:
        register_trainer(MODE)(ObjectiveByObjective)
        super().run(config)


@hydra.main(config_path="pkg://verl.trainer.config", config_name="ppo_trainer", version_base=None)
def main(config: DictConfig) -> None:
    validate_config(config, need_reference_policy(config), need_critic(config))
    run_ppo(config, task_runner_class=ray.remote(Runner))


if __name__ == "__main__":
    main()
