"""Objectives by name: what each becomes on each host, with the honest name of what is missing there.

Adapters and third parties register them (hook ``register_objectives``); the losses are the hosts' own.
"""

from __future__ import annotations

from collections.abc import Mapping

from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.adapter import ObjectiveSettings
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig


def objective_table(plugins: Plugins) -> dict[str, Mapping[str, ObjectiveSettings]]:
    """Every registered objective: its name -> host -> what it becomes there."""
    return dict(plugins.all("objective"))


def settings_on(host: str, objective: str, plugins: Plugins) -> ObjectiveSettings:
    """What an objective becomes on one host; ``settings`` of the result is not None.

    Raises:
        PluginError: If no objective has that name; with the nearest name that exists.
        ConfigError: If the host cannot train it; with why, and what it can train.
    """
    on_hosts: Mapping[str, ObjectiveSettings] = plugins.get("objective", objective)
    found = on_hosts.get(host)
    if found is None or found.settings is None:
        possible = sorted(
            name
            for name, hosts in objective_table(plugins).items()
            if host in hosts and hosts[host].settings is not None
        )
        why = found.missing if found else "nobody registered what it is there"
        raise ConfigError(
            f"refine: objective {objective!r} cannot be trained on {host}: {why}. It can train: {', '.join(possible)}."
        )
    return found


def resampling_rounds(host: str, config: RefineConfig) -> int:
    """Most rounds a batch of this package's dynamic sampling: what the settings say, else what the objective needs.

    Raises:
        PluginError, ConfigError: As :func:`settings_on`.
    """
    if config.dynamic_sampling is not None:
        return config.dynamic_sampling
    if config.objective is None:
        return 0
    return settings_on(host, config.objective, Plugins(config.plugin_modules)).dynamic_sampling
