"""The ``refine.*`` keys of a veRL configuration, and what is done with them before the job starts.

This runs in the driver (Hydra callback, or ``refine-wrapper run``), before anything is started; where the configuration
was composed elsewhere, when the manager is made. It imports neither veRL nor torch.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, cast

import click
from omegaconf import DictConfig, OmegaConf, open_dict

from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.budget import matched_group_size
from refine_wrapper.hosts.objectives import settings_on
from refine_wrapper.hosts.start import HostFacts, announce, check_start, num_context, with_absolute_paths
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.settings.sources import resolve
from refine_wrapper_verl.lengths import check_lengths, make_room
from refine_wrapper_verl.objectives import OWN_DYNAMIC_SAMPLING, apply_objective

MANAGER = "refine_wrapper_verl.RefineAgentLoopManager"
_NODE = "refine"
_PREPARED = "_plain_n"
"""A key beside the settings that says: the driver has prepared this configuration; it holds the plain run's n."""

_PLAIN_PROMPT_LENGTH = "_plain_prompt_length"
"""A key beside the settings: the plain run's rollout.prompt_length, at which it cuts questions."""

_RUN = "_run"
"""A key beside the settings: a name for this run, under which its manager tells the driver that it was asked for."""

_OBJECTIVE = "_objective"
"""A key beside the settings: the objective whose keys the driver has written, with refinement on and off."""

# What compares a row's log-probabilities with those that its sampler saw -> how it is switched off. A row that was
# sampled on q' and is trained under q has none of its sampler under q.
_COMPARED_WITH_THE_SAMPLER = {
    "algorithm.rollout_correction.bypass_mode": "False",
    "algorithm.rollout_correction.rollout_is": "null",
    "algorithm.rollout_correction.rollout_rs": "null",
    "actor_rollout_ref.rollout.enable_rollout_routing_replay": "False",
}

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
    name = settings.objective
    if name is None or name == OmegaConf.select(config, f"{_NODE}.{_OBJECTIVE}"):
        return True
    wanted = settings_on("verl", name, Plugins(settings.plugin_modules)).settings or {}
    return all(OmegaConf.select(config, key) == value for key, value in wanted.items())


def plain_group_size(config: DictConfig) -> int:
    """The group size of the plain run: ``rollout.n`` before ``match_budget`` shrank it."""
    return int(config[_NODE][_PREPARED] if is_prepared(config) else config.actor_rollout_ref.rollout.n)


def plain_prompt_length(config: DictConfig) -> int:
    """``rollout.prompt_length`` of the plain run, before it was raised to hold a draft."""
    raised = int(config.actor_rollout_ref.rollout.prompt_length)
    return int(OmegaConf.select(config, f"{_NODE}.{_PLAIN_PROMPT_LENGTH}") or raised)


def run_name(config: DictConfig) -> str:
    """The name under which the manager of a prepared configuration tells the driver that it was asked for."""
    return str(config[_NODE][_RUN])


def total_steps(config: DictConfig) -> int | None:
    """Optimizer steps of the run, where the trainer has said so by now."""
    for key in ("actor_rollout_ref.actor.optim.total_training_steps", "trainer.total_training_steps"):
        steps = OmegaConf.select(config, key)
        if steps is not None and int(steps) > 0:
            return int(steps)
    return None


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
    taken = OmegaConf.select(config, f"{_NODE}.{_OBJECTIVE}")
    notes = _take_objective(config, settings) if settings.objective not in (None, taken) else []
    if not settings.active:
        return settings
    settings.check_pipelined("veRL")
    refuse_unsupported(config)
    rollout = config.actor_rollout_ref.rollout
    _refuse_another_manager(rollout.agent.get("agent_loop_manager_class"))
    plain, plain_prompt = int(rollout.n), int(rollout.prompt_length)
    plugins = Plugins(settings.plugin_modules)
    context = num_context(settings, plain, plugins)
    with open_dict(config):
        if settings.match_budget and context:
            smallest = 1 if str(config.algorithm.adv_estimator) in _GROUP_FREE else 2
            rollout.n = matched_group_size(plain, context, smallest=smallest)
        check_start(facts(config), settings, plugins)
        notes += make_room(config, settings)
        check_lengths(config, settings)
        rollout.agent.agent_loop_manager_class = MANAGER
    store_settings(config, settings, plain, plain_prompt)
    announce(facts(config), settings, plugins, *notes)
    return settings


def _refuse_another_manager(named: str | None) -> None:
    if named and named.split(".")[0] != MANAGER.split(".")[0]:
        raise ConfigError(
            f"refine: actor_rollout_ref.rollout.agent.agent_loop_manager_class={named}, and refinement needs its own, "
            f"{MANAGER}. Leave that key out, or set refine.enabled=false."
        )


def facts(config: DictConfig) -> HostFacts:
    """What the common start-up must know of a run."""
    rollout = config.actor_rollout_ref.rollout
    return HostFacts(
        host="verl",
        title="veRL",
        group_size=int(rollout.n),
        plain_group_size=plain_group_size(config),
        group_size_setting="actor_rollout_ref.rollout.n",
        match_budget="refine.match_budget=true, which takes the drafts out of actor_rollout_ref.rollout.n",
        evaluation_size=int(rollout.val_kwargs.n),
        evaluation_setting="actor_rollout_ref.rollout.val_kwargs.n",
        corrections={
            f"{key}={OmegaConf.select(config, key)}": f"{key}={off}"
            for key, off in _COMPARED_WITH_THE_SAMPLER.items()
            if OmegaConf.select(config, key)
        },
    )


def _take_objective(config: DictConfig, settings: RefineConfig) -> list[str]:
    """Have the host train the named objective, whether it is refined or not; returns what to say of it."""
    name = str(settings.objective)
    objective = settings_on("verl", name, Plugins(settings.plugin_modules))
    changed = apply_objective(config, name, objective)
    notes = [f"objective={name} set {', '.join(changed)}."] if changed else []
    OmegaConf.update(config, f"{_NODE}.{_OBJECTIVE}", name, force_add=True)
    if not settings.active:  # else the announcement says it
        missing = f"; not set: {objective.missing}" if objective.missing else ""
        click.echo("\n  ".join([f"refine-wrapper: objective={name}{missing}.", *notes]), err=True)
    return notes


def store_settings(config: DictConfig, settings: RefineConfig, plain: int, plain_prompt: int) -> None:
    """Put the resolved settings into the configuration: workers of a Ray cluster do not see this environment.

    Args:
        config: The run's configuration; prepared from now on.
        settings: The resolved settings.
        plain: The group size of the plain run.
        plain_prompt: ``rollout.prompt_length`` of the plain run.
    """
    with open_dict(config):
        config[_NODE] = {
            **with_absolute_paths(settings).model_dump(mode="json"),
            _PREPARED: plain,
            _PLAIN_PROMPT_LENGTH: plain_prompt,
            _RUN: uuid.uuid4().hex,
            _OBJECTIVE: OmegaConf.select(config, f"{_NODE}.{_OBJECTIVE}"),
        }


def refuse_unsupported(config: DictConfig) -> None:
    """Refuse what cannot be refined, with what to change.

    Raises:
        ConfigError: For fully_async_policy, a colocated reward model, full_determinism, or ReMax.
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
    if str(config.algorithm.adv_estimator) == "remax":
        raise ConfigError(
            "refine: ReMax compares each sample with a greedy one of the same prompt, and veRL samples that one apart "
            "from its group, on q. Use another algorithm.adv_estimator, such as rloo or grpo, or refine.enabled=false."
        )


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
