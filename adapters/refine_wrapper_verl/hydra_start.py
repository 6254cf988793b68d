"""The Hydra callback of the config group: prepares the configuration in the driver, within seconds.

Otherwise a wrong number would only be found once all models are loaded.
"""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from refine_wrapper_verl.settings import prepare


class PrepareConfig(Callback):
    """Named in ``hydra.callbacks`` by the group ``refine``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """What is changed here is what the job gets: Hydra copies the configuration afterwards."""
        prepare(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A sweep composes one configuration per job; each is prepared where its manager is made."""
