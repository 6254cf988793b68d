"""One start-up for all hosts: what is refused, which paths workers get, what is said on screen.

An adapter gives the facts of its host; it adds only what no other host has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from refine_wrapper.core.planner import make_mode, make_rules
from refine_wrapper.core.types import TrainUnder
from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.budget import CompletionBudget
from refine_wrapper.hosts.objectives import settings_on
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a start-up must know of a host and of the run it is about to make.

    Attributes:
        host: Name of the host, as in ``refine-wrapper objectives``.
        title: What is refined, for people: ``veRL``, ``GRPOTrainer``.
        group_size: S, completions per prompt that are trained in this run.
        plain_group_size: Completions per prompt of the plain run.
        group_size_setting: The host's own setting of it.
        match_budget: How this host writes ``match_budget``, and what that shrinks, for people.
        evaluation_size: Completions per prompt of the host's evaluation; None where there is none.
        evaluation_setting: The host's own setting of it.
        corrections: Settings in use that weigh rows by the sampler's log-probabilities -> what to set instead. Empty
            where the host leaves out rows that were sampled under another prompt.
    """

    host: str
    title: str
    group_size: int
    plain_group_size: int
    group_size_setting: str
    match_budget: str = ""
    evaluation_size: int | None = None
    evaluation_setting: str = ""
    corrections: Mapping[str, str] = field(default_factory=dict[str, str])


def num_context(config: RefineConfig, group_size: int, plugins: Plugins) -> int:
    """Completions of a group beside those in its slots, at most: what ``match_budget`` takes out of the group."""
    return make_mode(config, plugins).num_context(group_size, make_rules(config, plugins))


def trains_on_question(config: RefineConfig, plugins: Plugins) -> bool:
    """Whether rows that were sampled on q' may be trained under q."""
    mode_says = make_mode(config, plugins).trains_under(make_rules(config, plugins))
    return TrainUnder(config.train_under or mode_says) is not TrainUnder.SAMPLED


def check_start(facts: HostFacts, config: RefineConfig, plugins: Plugins) -> None:
    """Refuse what the mode cannot do with this host, before anything is sampled.

    Raises:
        ConfigError: With the settings to change.
        PluginError: For a mode or a selector that is not there.
    """
    mode, rules = make_mode(config, plugins), make_rules(config, plugins)
    mode.check(facts.group_size, rules)
    if config.evaluation == "refine" and facts.evaluation_size is not None:
        _check_refined_evaluation(facts, config, plugins)
    if facts.corrections and trains_on_question(config, plugins):
        setting, instead = next(iter(facts.corrections.items()))
        raise ConfigError(
            f"refine: mode {config.mode!r} trains refinements as answers to the question, and {setting} weighs them by "
            f"what the sampler gave them under another prompt. Set {instead}, or train_under=sampled."
        )


def _check_refined_evaluation(facts: HostFacts, config: RefineConfig, plugins: Plugins) -> None:
    """Evaluation samples groups of a size of its own, and must not choose among its answers."""
    mode, rules = make_mode(config, plugins), make_rules(config, plugins)
    if mode.may_take(rules):
        raise ConfigError(
            f"refine: mode {config.mode!r} replaces wrong answers by right ones, so evaluation=refine would measure "
            "nothing. Leave it out."
        )
    try:
        mode.check(facts.evaluation_size or 0, rules)
    except ConfigError as error:
        raise ConfigError(
            f"{error} This is about {facts.evaluation_setting}={facts.evaluation_size}, because of evaluation=refine."
        ) from None


def with_absolute_paths(config: RefineConfig) -> RefineConfig:
    """The settings for processes that run in other folders."""
    changes: dict[str, object] = {}
    if config.trace_dir is not None:
        changes["trace_dir"] = Path(os.path.abspath(config.trace_dir.expanduser()))
    template = Path(config.template).expanduser()
    if template.is_file():
        changes["template"] = os.path.abspath(template)
    return config.replace(**changes) if changes else config


def announcement(facts: HostFacts, config: RefineConfig, plugins: Plugins, *notes: str) -> str:
    """What is said on screen, once per run: that refinement is on, what it costs, what else is changed."""
    context = num_context(config, facts.group_size, plugins)
    budget = CompletionBudget(context, facts.group_size, facts.plain_group_size)
    lines = [
        f"refine-wrapper: on for {facts.title}. {budget.describe()}.",
        f"  mode={config.mode} selector={config.selector} template={config.template} evaluation={config.evaluation}",
    ]
    if config.objective is not None:
        missing = settings_on(facts.host, config.objective, plugins).missing
        lines.append(f"  objective={config.objective}" + (f"; not set: {missing}" if missing else ""))
    shrunk = facts.group_size != facts.plain_group_size
    if shrunk:
        lines.append(
            f"  The group size changed from {facts.plain_group_size} to {facts.group_size}: a reward that knows the "
            f"group size must read {facts.group_size_setting}."
        )
    if shrunk and config.refine_share < 1:
        lines.append(
            f"  refine_share={config.refine_share}: a group that is not refined has {facts.group_size} completions, "
            f"fewer than the plain run's {facts.plain_group_size}."
        )
    if not budget.matched and facts.match_budget:
        lines.append(f"  To match the plain run's {facts.plain_group_size} completions: {facts.match_budget}.")
    return "\n".join([*lines, *(f"  {note}" for note in notes)])


def announce(facts: HostFacts, config: RefineConfig, plugins: Plugins, *notes: str) -> None:
    """Say :func:`announcement` on the screen."""
    click.echo(announcement(facts, config, plugins, *notes), err=True)
