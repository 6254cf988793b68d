"""The plugin contract. An author decorates functions of these names with ``refine_wrapper.hookimpl``.

Registration hooks are collected from every plugin once, at load time; a name that is registered twice is refused.
Decision hooks are asked in order, most recently loaded plugin first, and the first answer that is not None counts; the
package's own answer comes last. Observer hooks are all called. docs/plugins.md has a runnable example of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from refine_wrapper.core.modes.interface import Mode
    from refine_wrapper.core.prompts.interface import Template
    from refine_wrapper.core.selection.interface import Selector
    from refine_wrapper.core.types import Group
    from refine_wrapper.hosts.adapter import Adapter, ObjectiveSettings
    from refine_wrapper.rewards.interface import Reward
    from refine_wrapper.settings.config import RefineConfig

PROJECT = "refine_wrapper"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# Registration: collected, at load time.


@hookspec
def register_selectors() -> Mapping[str, type[Selector]]:  # pyright: ignore[reportReturnType]
    """Draft selection policies by name, for ``selector=NAME``. Called once by the plugin manager."""


@hookspec
def register_templates() -> Mapping[str, Template]:  # pyright: ignore[reportReturnType]
    """Refinement templates by name, for ``template=NAME``. Called once by the plugin manager."""


@hookspec
def register_modes() -> Mapping[str, type[Mode]]:  # pyright: ignore[reportReturnType]
    """Modes by name, for ``mode=NAME``: how the slots of a group are filled. Called once by the plugin manager."""


@hookspec
def register_rewards() -> Mapping[str, Reward]:  # pyright: ignore[reportReturnType]
    """Reward functions by name, usable on every host. Called once by the plugin manager."""


@hookspec
def register_adapters() -> Mapping[str, Adapter]:  # pyright: ignore[reportReturnType]
    """Hosts by name. Must not import the host. Called once by the plugin manager."""


@hookspec
def register_objectives() -> Mapping[str, Mapping[str, ObjectiveSettings]]:  # pyright: ignore[reportReturnType]
    """Settings that make a host train a named objective: objective name -> host name -> settings."""


@hookspec
def register_commands() -> Mapping[str, str]:  # pyright: ignore[reportReturnType]
    """Commands of ``refine-wrapper``: name -> ``package.module:command``, a ``click.Command``.

    Called once by the plugin manager; the module is imported when the command is used, or its help shown.
    """


# Decisions: the first answer that is not None counts.


@hookspec(firstresult=True)
def normalize_reward(reward: Any) -> float | None:
    """One scalar from what a reward function returned for one sample (a float, a 0-d array, ``[x]``).

    Called for every sample that is scored for a decision. Raise to have it counted as ``reward_exception``.
    """


@hookspec(firstresult=True)
def extract_answer(text: str) -> str | None:
    """The final answer in a completion, for the copy rate.

    None leaves it to the package's rule (boxed, tagged, whole).
    """


# Observers: all called.


@hookspec
def group_finished(group: Group, config: RefineConfig) -> None:
    """A group has all its samples. Called once per group, on the process that logs. What it raises costs a warning."""
