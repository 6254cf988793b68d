"""Puts the config group ``refine`` on the search path of every Hydra application here (``+refine=best_of_4``).

Hydra finds this file because ``hydra_plugins`` is the namespace package it looks in. A group that nobody names changes
nothing.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class RefineSearchPath(SearchPathPlugin):
    """Appends, so that a user's own group of this name wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="refine-wrapper", path="pkg://refine_wrapper_verl.conf")
