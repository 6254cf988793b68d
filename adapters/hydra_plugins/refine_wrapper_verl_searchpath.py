"""Puts the config group ``refine`` on the search path of Hydra applications, and our callback into those of veRL.

Hydra finds this file because ``hydra_plugins`` is the namespace package it looks in. A group that nobody names changes
nothing, and the callback does nothing where the composed configuration has none of our keys.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin


class RefineSearchPath(SearchPathPlugin):
    """Appends, so that a user's own group of this name wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="refine-wrapper", path="pkg://refine_wrapper_verl.conf")
        _add_callback()


def _add_callback() -> None:
    """As the group does itself, for single keys: otherwise nothing of ours would run before the models are loaded.

    Hydra takes callbacks from its own default configuration, which lies in its config store.
    """
    store = ConfigStore.instance()
    defaults = store.load("hydra/config.yaml").node
    defaults.callbacks["refine_wrapper"] = {"_target_": "refine_wrapper_verl.hydra_start.PrepareConfig"}
    store.store(group="hydra", name="config", node=defaults, provider="hydra")
