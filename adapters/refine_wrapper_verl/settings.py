"""The ``refine.*`` keys of a veRL configuration, and what is done with them before the job starts.

This runs in the driver (Hydra callback, or ``refine-wrapper run``), before anything is started; where the configuration
was composed elsewhere, when the manager is made. It imports neither veRL nor torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click
from omegaconf import DictConfig, OmegaConf, open_dict

from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.budget import CompletionBudget, matched_group_size
from refine_wrapper.hosts.objectives import settings_on
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.settings.sources import resolve
from refine_wrapper_verl.lengths import check_lengths, make_room
from refine_wrapper_verl.objectives import OWN_DYNAMIC_SAMPLING, apply_objective

MANAGER = "refine_wrapper_verl.RefineAgentLoopManager"
_NODE = "refine"
_PREPARED = "_plain_n"
"""A key beside the settings that says: the driver has prepared this configuration; it holds the plain run's n."""

_OBJECTIVE = "_objective"
"""A key beside the settings: the objective whose keys the driver has written, with refinement on and off."""

# Estimators that need no group: one refinement per prompt is enough for them.
_GROUP_FREE = frozenset({"gae", "reinforce_plus_plus", "remax"})


def read_settings(config: DictConfig) -> RefineConfig:
    """The settings a configuration states, merged with flags, environment and file unless the driver did that already.

    Raises:
        ConfigError: For an unknown key, a bad value, or a ``refine`` that is no group of keys.
    """
    stated = _stated(config)
    if is_prepared(config):
        return RefineConfig(**stated)
    try:
        return resolve(host=stated)
    except ConfigError as error:
        raise ConfigError(
            f"{error} (In a veRL command the settings are keys, for example refine.num_drafts=4.)"
        ) from None


def is_prepared(config: DictConfig) -> bool:
    """Whether :func:`prepare` has seen this configuration."""
    node = config.get(_NODE)
    return isinstance(node, DictConfig) and _PREPARED in node


def has_objective(config: DictConfig, settings: RefineConfig) -> bool:
    """Whether the objective that the settings name, if any, is the one that will be trained."""
    return settings.objective in (None, OmegaConf.select(config, f"{_NODE}.{_OBJECTIVE}"))


def plain_group_size(config: DictConfig) -> int:
    """The group size of the plain run: ``rollout.n`` before ``match_budget`` shrank it."""
    return int(config[_NODE][_PREPARED] if is_prepared(config) else config.actor_rollout_ref.rollout.n)


def prepare(config: DictConfig) -> RefineConfig:
    """Make a configuration ready to refine: check it, fit lengths and group size, name the manager, say so. Idempotent.

    With refinement switched off the configuration stays as it is, but for a named objective.

    Raises:
        ConfigError: For settings, or a combination with the host's, that cannot work.
        BudgetError: For lengths or group sizes that cannot work, with the numbers to set.
    """
    settings = read_settings(config)
    if is_prepared(config):
        return settings
    settings.refuse_dynamic_sampling(*OWN_DYNAMIC_SAMPLING)
    if not has_objective(config, settings):
        _take_objective(config, settings)
    if not settings.active:
        return settings
    settings.check_pipelined("veRL")
    refuse_unsupported(config)
    rollout = config.actor_rollout_ref.rollout
    plain = int(rollout.n)
    with open_dict(config):
        if settings.match_budget:
            smallest = 1 if str(config.algorithm.adv_estimator) in _GROUP_FREE else 2
            rollout.n = matched_group_size(plain, settings.num_drafts, smallest=smallest)
        notes = make_room(config, settings)
        check_lengths(config, settings)
        rollout.agent.agent_loop_manager_class = MANAGER
    store_settings(config, settings, plain)
    announce(config, settings, notes)
    return settings


def _take_objective(config: DictConfig, settings: RefineConfig) -> None:
    """Have the host train the named objective, whether it is refined or not, and say so."""
    name = str(settings.objective)
    objective = settings_on("verl", name, Plugins(settings.plugin_modules))
    apply_objective(config, name, objective)
    OmegaConf.update(config, f"{_NODE}.{_OBJECTIVE}", name, force_add=True)
    missing = f"; not set: {objective.missing}" if objective.missing else ""
    click.echo(f"refine-wrapper: objective={name}{missing}.", err=True)


def store_settings(config: DictConfig, settings: RefineConfig, plain: int) -> None:
    """Put the resolved settings into the configuration: workers of a Ray cluster do not see this environment.

    Args:
        config: The run's configuration; prepared from now on.
        settings: The resolved settings.
        plain: The group size of the plain run.
    """
    with open_dict(config):
        objective = OmegaConf.select(config, f"{_NODE}.{_OBJECTIVE}")
        config[_NODE] = {**_absolute(settings).model_dump(mode="json"), _PREPARED: plain, _OBJECTIVE: objective}


def refuse_unsupported(config: DictConfig) -> None:
    """Refuse what cannot be refined, with what to change.

    Raises:
        ConfigError: For fully_async_policy, a colocated reward model, or full_determinism.
    """
    if config.get("async_training") is not None:
        # It makes an AgentLoopManager of its own (fully_async_rollouter.py), so that ours would never be asked.
        raise ConfigError(
            "refine: veRL's fully_async_policy makes its own agent loop manager and cannot be refined. Use "
            "verl.trainer.main_ppo, synchronous or with trainer.v1.trainer_mode=colocate_async, or set "
            "refine.enabled=false."
        )
    reward_model = config.reward.reward_model
    if reward_model.enable and not reward_model.enable_resource_pool:
        raise ConfigError(
            "refine: a colocated reward model scores after the rollout, so drafts cannot be scored. Give it GPUs of "
            "its own (reward.reward_model.enable_resource_pool=True and its n_gpus_per_node and nnodes), or use a "
            "reward function."
        )
    if config.actor_rollout_ref.rollout.full_determinism:
        raise ConfigError(
            "refine: rollout.full_determinism gives all requests of a prompt one id and one seed, so that N drafts "
            "would be N times the same. Set actor_rollout_ref.rollout.full_determinism=False."
        )


def announce(config: DictConfig, settings: RefineConfig, notes: tuple[str, ...] = ()) -> None:
    """Say on screen, once per run, that refinement is on and what it costs."""
    budget = CompletionBudget(settings.num_drafts, int(config.actor_rollout_ref.rollout.n), plain_group_size(config))
    lines = [f"refine-wrapper: on for veRL. {budget.describe()}."]
    lines.append(
        f"  selector={settings.selector} template={settings.template} evaluation={settings.evaluation} "
        f"plan={settings.plan}"
    )
    if not budget.matched:
        lines.append(
            f"  To match the plain run's {budget.baseline} completions: refine.match_budget=true, which takes the "
            "drafts out of actor_rollout_ref.rollout.n."
        )
    click.echo("\n".join([*lines, *(f"  {note}" for note in notes)]), err=True)


def _stated(config: DictConfig) -> dict[str, Any]:
    node = config.get(_NODE)
    if node is None:
        return {}
    if not isinstance(node, DictConfig):
        raise ConfigError(
            f"refine: {_NODE}={node} is not a group of keys. Write +refine=best_of_4 (a config group), or "
            "+refine.num_drafts=4."
        )
    keys = [str(name) for name in node if not str(name).startswith("_") and not OmegaConf.is_missing(node, name)]
    plain: Mapping[str, Any] = cast("Mapping[str, Any]", OmegaConf.to_container(node, resolve=True))
    return {name: plain[name] for name in keys}


def _absolute(settings: RefineConfig) -> RefineConfig:
    """Paths as the driver means them: workers may be started in another folder."""
    changes: dict[str, Any] = {}
    if settings.trace_dir is not None:
        changes["trace_dir"] = Path(os.path.abspath(settings.trace_dir.expanduser()))
    template = Path(settings.template).expanduser()
    if template.is_file():
        changes["template"] = os.path.abspath(template)
    return settings.replace(**changes) if changes else settings
