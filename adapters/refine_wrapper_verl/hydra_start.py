"""The Hydra callback that prepares the configuration in the driver, within seconds.

Otherwise a wrong number would only be found once all models are loaded.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from refine_wrapper.errors import RefineError
from refine_wrapper.settings.sources import LAUNCH_VARIABLE
from refine_wrapper_verl.settings import MANAGER, prepare

_MANAGER_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"


class PrepareConfig(Callback):
    """In ``hydra.callbacks`` by the group ``refine``, or by our plugin of Hydra where the command has single keys."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """What is changed here is what the job gets: Hydra copies the configuration afterwards.

        Raises:
            SystemExit: For what cannot work. Hydra turns any ``Exception`` of a callback into a warning and goes on.
        """
        if not _is_ours(config):
            return
        try:
            prepare(config)
        except RefineError as error:
            sys.exit(str(error))
        except Exception:
            traceback.print_exc()
            sys.exit("refine: the configuration could not be prepared; the reason stands above.")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A sweep composes one configuration per job, out of reach here; each is prepared where its manager is made.

        Raises:
            SystemExit: If that manager is not ours: the jobs would be plain runs.
        """
        stated = any("refine." in override for override in config.hydra.overrides.task)
        if "actor_rollout_ref" in config and stated and not _names_our_manager(config):
            sys.exit(
                "refine: in a sweep (--multirun) our manager prepares each job. Use the config group "
                f"(+refine=best_of_4), or add +{_MANAGER_KEY}={MANAGER}."
            )


def _is_ours(config: DictConfig) -> bool:
    if "actor_rollout_ref" not in config:
        return False
    if "refine" in config or _names_our_manager(config):
        return True
    # `refine-wrapper run` prepares what main_ppo validates; fully_async_policy validates nothing.
    return LAUNCH_VARIABLE in os.environ and config.get("async_training") is not None


def _names_our_manager(config: DictConfig) -> bool:
    return "refine_wrapper_verl" in str(OmegaConf.select(config, _MANAGER_KEY))
