"""The plugin manager: loads built-ins and third parties through the same hooks, and says exactly who is wrong."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Final, cast

import pluggy

from refine_wrapper.errors import PluginError
from refine_wrapper.nearest import did_you_mean
from refine_wrapper.plugins import hookspecs
from refine_wrapper.settings.sources import PLUGINS_VARIABLE

_BUILT_IN: Final = (
    "refine_wrapper.core.selection.hooks",
    "refine_wrapper.core.prompts.hooks",
    "refine_wrapper.core.modes.hooks",
    "refine_wrapper.rewards.hooks",
)
_OWN_DISTRIBUTION: Final = "refine-wrapper"

REGISTRIES: Final[Mapping[str, str]] = {
    "selector": "register_selectors",
    "template": "register_templates",
    "mode": "register_modes",
    "reward": "register_rewards",
    "adapter": "register_adapters",
    "objective": "register_objectives",
    "command": "register_commands",
}
"""What can be registered -> the hook that registers it."""


class Plugins:
    """All loaded plugins and what they registered.

    Args:
        modules: Names of modules to load as plugins (``--plugin``), after the installed ones.
        entry_points: Whether to load installed third-party plugins (entry point group ``refine_wrapper``). The
            variable ``REFINE_WRAPPER_PLUGINS`` limits them to a comma-separated list; empty means none.

    Raises:
        PluginError: Naming the plugin, the hook and the file where it is defined.
    """

    def __init__(self, modules: Iterable[str] = (), *, entry_points: bool = True) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for name in _BUILT_IN:
            self._register(importlib.import_module(name), name)
        self._load_entry_points(third_parties=entry_points)
        for name in modules:
            self._register(_import_plugin(name), name)
        self._check_unknown_hooks()
        self._registries = {kind: self._collect(kind, hook) for kind, hook in REGISTRIES.items()}

    @property
    def hook(self) -> Any:
        """Calls a decision or observer hook: ``plugins.hook.select_draft(...)``."""
        return self._manager.hook

    def names(self) -> list[str]:
        """Names of the loaded plugins, in the order in which they were loaded."""
        return [name for name, _ in self._manager.list_name_plugin()]

    def all(self, kind: str) -> Mapping[str, Any]:
        """Everything registered of one kind (a key of :data:`REGISTRIES`), by name."""
        return {name: value for name, (value, _) in self._registries[kind].items()}

    def get(self, kind: str, name: str) -> Any:
        """One registered object.

        Raises:
            PluginError: If nothing of that kind has that name; with the nearest name that exists.
        """
        try:
            return self._registries[kind][name][0]
        except KeyError:
            raise PluginError(
                f"refine: unknown {kind} {name!r}. {did_you_mean(name, self._registries[kind])}"
            ) from None

    def owner(self, kind: str, name: str) -> str:
        """Name of the plugin that registered it."""
        return self._registries[kind][name][1]

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin that is already an object (a module or an instance with hook implementations)."""
        self._register(plugin, name)
        self._check_unknown_hooks()
        self._registries = {kind: self._collect(kind, hook) for kind, hook in REGISTRIES.items()}

    def _register(self, plugin: object, name: str) -> None:
        try:
            self._manager.register(plugin, name=name)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"refine: plugin {name!r} ({_file_of(plugin)}): {error}") from error
        except ValueError as error:
            raise PluginError(f"refine: plugin {name!r} ({_file_of(plugin)}) is loaded twice: {error}") from error

    def _load_entry_points(self, *, third_parties: bool) -> None:
        wanted = os.environ.get(PLUGINS_VARIABLE)
        allowed = None if wanted is None else {name.strip() for name in wanted.split(",") if name.strip()}
        found: set[str] = set()
        loaded: dict[str, str] = {}
        for entry_point in importlib.metadata.entry_points(group=hookspecs.PROJECT):
            own = entry_point.dist is not None and entry_point.dist.name == _OWN_DISTRIBUTION
            found.add(entry_point.name)
            if not own and (not third_parties or (allowed is not None and entry_point.name not in allowed)):
                continue
            if loaded.get(entry_point.name) == entry_point.value:
                continue  # the same distribution seen twice on sys.path
            if entry_point.name in loaded:
                raise PluginError(
                    f"refine: two installed plugins are called {entry_point.name!r}: {loaded[entry_point.name]} and "
                    f"{entry_point.value}. Uninstall one of them."
                )
            loaded[entry_point.name] = entry_point.value
            try:
                plugin = entry_point.load()
            except Exception as error:
                raise PluginError(
                    f"refine: plugin {entry_point.name!r} ({entry_point.value}) cannot be imported: "
                    f"{type(error).__name__}: {error}. Leave it out with {PLUGINS_VARIABLE}=."
                ) from error
            self._register(plugin, entry_point.name)
        if third_parties and allowed and not allowed <= found:
            missing = sorted(allowed - found)[0]
            raise PluginError(
                f"refine: {PLUGINS_VARIABLE} names {missing!r}, which is not installed. {did_you_mean(missing, found)}"
            )

    def _check_unknown_hooks(self) -> None:
        known = [name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction)]
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            plugin = self._manager.get_name(error.plugin) or "?"
            unknown = next(
                (
                    caller.name
                    for caller in (self._manager.get_hookcallers(error.plugin) or ())
                    if caller.name not in known
                ),
                "?",
            )
            raise PluginError(
                f"refine: plugin {plugin!r} ({_file_of(error.plugin)}) implements {unknown!r}, which is no hook. "
                f"{did_you_mean(unknown, known)}"
            ) from error

    def _collect(self, kind: str, hook_name: str) -> dict[str, tuple[Any, str]]:
        collected: dict[str, tuple[Any, str]] = {}
        for implementation in getattr(self._manager.hook, hook_name).get_hookimpls():
            plugin = implementation.plugin_name
            where = f"plugin {plugin!r} ({_file_of(implementation.plugin)}), hook {hook_name!r}"
            registered = implementation.function()
            if not isinstance(registered, Mapping):
                raise PluginError(f"refine: {where} must return a mapping of names, not {type(registered).__name__}.")
            for name, value in cast("Mapping[str, Any]", registered).items():
                # Objectives of one name may come from several plugins, one for each host.
                if kind == "objective" and name in collected and not set(collected[name][0]) & set(value):
                    value = {**collected[name][0], **value}
                elif name in collected:
                    raise PluginError(
                        f"refine: {where} registers the {kind} {name!r}, which plugin {collected[name][1]!r} "
                        f"registered "
                        "already. Give it another name."
                    )
                collected[name] = (value, plugin)
        return collected


def _import_plugin(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PluginError(
            f"refine: the plugin module {name!r} cannot be imported: {error}. It must be importable from where the "
            "trainer starts; add its folder to PYTHONPATH."
        ) from error
    except Exception as error:
        raise PluginError(
            f"refine: the plugin module {name!r} cannot be imported: {type(error).__name__}: {error}."
        ) from error


def _file_of(plugin: object) -> str:
    try:
        return inspect.getfile(plugin if inspect.ismodule(plugin) or inspect.isclass(plugin) else type(plugin))
    except (TypeError, OSError):
        return "defined interactively"
