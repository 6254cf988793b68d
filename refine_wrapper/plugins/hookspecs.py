"""The plugin contract. An author decorates functions of these names with ``refine_wrapper.hookimpl``.

Registration hooks are collected from every plugin once, at load time; a name that is registered twice is refused.
Decision hooks are asked in order, most recently loaded plugin first, and the first answer that is not None counts; the
package's own answer comes last. Observer hooks are all called. docs/plugins.md has a runnable example of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from refine_wrapper.core.plans.interface import PlanPolicy
    from refine_wrapper.core.prompts.interface import Template
    from refine_wrapper.core.selection.interface import Selector
    from refine_wrapper.core.types import Draft, GroupOutcome, Prompt, PromptRoom
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
def register_plans() -> Mapping[str, type[PlanPolicy]]:  # pyright: ignore[reportReturnType]
    """Policies that decide what happens to a group after Stage 1, for ``plan=NAME``.

    Called once by the plugin manager.
    """


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
    """One scalar from what a reward function returned for one draft (a float, a 0-d array, ``[x]``).

    Called for every draft before selection. Raise to have the draft counted as ``reward_exception``.
    """


@hookspec(firstresult=True)
def select_draft(group_id: str, drafts: Sequence[Draft], config: RefineConfig) -> int | None:
    """Index of the draft to put into the prompt; ``drafts`` are the usable ones, ordered by index.

    Called once per group. None leaves the choice to the configured selector. Must depend on its arguments only, so
    that every rank chooses the same draft.
    """


@hookspec(firstresult=True)
def build_prompt(question: Prompt, draft: str, room: PromptRoom, config: RefineConfig) -> Prompt | None:
    """q' from q and the text of a draft. None leaves it to the configured template.

    Called while the draft is being fitted, so perhaps several times per group. ``draft`` is already neutralised.
    """


@hookspec(firstresult=True)
def extract_answer(text: str) -> str | None:
    """The final answer in a completion, for the copy rate.

    None leaves it to the package's rule (boxed, tagged, whole).
    """


# Observers: all called.


@hookspec
def group_finished(outcome: GroupOutcome, config: RefineConfig) -> None:
    """A group has all its refinements. Called once per group, on the main process where groups span several."""
