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

from refine_wrapper.core.planner import make_mode, make_rules
from refine_wrapper.core.types import TrainUnder
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

_PLAIN_PROMPT_LENGTH = "_plain_prompt_length"
"""A key beside the settings: the plain run's rollout.prompt_length, at which it cuts questions."""

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


def plain_prompt_length(config: DictConfig) -> int:
    """``rollout.prompt_length`` of the plain run, before it was raised to hold a draft."""
    raised = int(config.actor_rollout_ref.rollout.prompt_length)
    return int(OmegaConf.select(config, f"{_NODE}.{_PLAIN_PROMPT_LENGTH}") or raised)


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
    if not has_objective(config, settings):
        _take_objective(config, settings)
    if not settings.active:
        return settings
    settings.check_pipelined("veRL")
    refuse_unsupported(config, settings)
    rollout = config.actor_rollout_ref.rollout
    plain, plain_prompt = int(rollout.n), int(rollout.prompt_length)
    plugins = Plugins(settings.plugin_modules)
    context = make_mode(settings, plugins).num_context(plain, make_rules(settings, plugins))
    with open_dict(config):
        if settings.match_budget and context:
            smallest = 1 if str(config.algorithm.adv_estimator) in _GROUP_FREE else 2
            rollout.n = matched_group_size(plain, context, smallest=smallest)
        check_mode(config, settings)
        notes = make_room(config, settings)
        check_lengths(config, settings)
        rollout.agent.agent_loop_manager_class = MANAGER
    store_settings(config, settings, plain, plain_prompt)
    announce(config, settings, notes)
    return settings


def check_mode(config: DictConfig, settings: RefineConfig) -> None:
    """Refuse group sizes that the mode cannot work with.

    Raises:
        ConfigError: With the numbers to set.
    """
    plugins = Plugins(settings.plugin_modules)
    mode, rules, rollout = make_mode(settings, plugins), make_rules(settings, plugins), config.actor_rollout_ref.rollout
    mode.check(int(rollout.n), rules)
    if settings.evaluation == "refine":
        try:
            mode.check(int(rollout.val_kwargs.n), rules)
        except ConfigError as error:
            raise ConfigError(
                f"{error} (Of the validation, refine.evaluation=refine: actor_rollout_ref.rollout.val_kwargs.n="
                f"{rollout.val_kwargs.n}.)"
            ) from None


def _take_objective(config: DictConfig, settings: RefineConfig) -> None:
    """Have the host train the named objective, whether it is refined or not, and say so."""
    name = str(settings.objective)
    objective = settings_on("verl", name, Plugins(settings.plugin_modules))
    apply_objective(config, name, objective)
    OmegaConf.update(config, f"{_NODE}.{_OBJECTIVE}", name, force_add=True)
    missing = f"; not set: {objective.missing}" if objective.missing else ""
    click.echo(f"refine-wrapper: objective={name}{missing}.", err=True)


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
            **_absolute(settings).model_dump(mode="json"),
            _PREPARED: plain,
            _PLAIN_PROMPT_LENGTH: plain_prompt,
            _OBJECTIVE: OmegaConf.select(config, f"{_NODE}.{_OBJECTIVE}"),
        }


def refuse_unsupported(config: DictConfig, settings: RefineConfig) -> None:
    """Refuse what cannot be refined, with what to change.

    Raises:
        ConfigError: For fully_async_policy, a colocated reward model, full_determinism, ReMax, or, in modes that train
            refinements as answers to q, settings that compare with the sampler's log-probabilities.
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
    _refuse_sampler_corrections(config, settings)


def _refuse_sampler_corrections(config: DictConfig, settings: RefineConfig) -> None:
    """A row that was sampled on q' and is trained under q has no log-probabilities of its sampler under q."""
    plugins = Plugins(settings.plugin_modules)
    mode = make_mode(settings, plugins)
    under = TrainUnder(settings.train_under or mode.trains_under(make_rules(settings, plugins)))
    if under is TrainUnder.SAMPLED:
        return
    correction = "algorithm.rollout_correction"
    wrong = {
        f"{correction}.bypass_mode": "False",
        f"{correction}.rollout_is": "null",
        f"{correction}.rollout_rs": "null",
        "actor_rollout_ref.rollout.enable_rollout_routing_replay": "False",
    }
    for key, value in wrong.items():
        stated = OmegaConf.select(config, key)
        if stated:
            raise ConfigError(
                f"refine: mode {settings.mode!r} trains refinements as answers to the question (train_under={under.value}), "
                f"and {key}={stated} compares with what the sampler saw, which is the refined prompt. Set {key}={value}, or "
                "refine.train_under=sampled."
            )


def announce(config: DictConfig, settings: RefineConfig, notes: tuple[str, ...] = ()) -> None:
    """Say on screen, once per run, that refinement is on and what it costs."""
    rollout, plain = config.actor_rollout_ref.rollout, plain_group_size(config)
    plugins = Plugins(settings.plugin_modules)
    context = make_mode(settings, plugins).num_context(int(rollout.n), make_rules(settings, plugins))
    lines: list[str] = []
    if context:
        budget = CompletionBudget(context, int(rollout.n), plain)
        said = budget.describe()
        if not budget.matched:
            lines.append(
                f"  To match the plain run's {budget.baseline} completions: refine.match_budget=true, which takes the "
                "drafts out of actor_rollout_ref.rollout.n."
            )
    else:
        said = f"{rollout.n} completions per prompt, as many as the plain run samples, in groups of its size"
    head = (
        f"refine-wrapper: on for veRL. {said}.",
        f"  mode={settings.mode} selector={settings.selector} template={settings.template} "
        f"evaluation={settings.evaluation}",
    )
    click.echo("\n".join([*head, *lines, *(f"  {note}" for note in notes)]), err=True)


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
