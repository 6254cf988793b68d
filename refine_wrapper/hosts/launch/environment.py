"""What a launched command finds in its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from refine_wrapper.errors import PluginError
from refine_wrapper.hosts.adapter import Adapter
from refine_wrapper.settings.sources import FLAGS_VARIABLE, LAUNCH_VARIABLE

INJECT: Final = Path(__file__).absolute().with_name("inject")


def child_environment(
    environ: Mapping[str, str], flags: Mapping[str, Any], patches: Mapping[str, str], reports: str | None
) -> dict[str, str]:
    """The environment of a command that is to refine, or of the plain command.

    Args:
        environ: The environment to start from.
        flags: The settings that were given as flags.
        patches: Host module -> function of an adapter.
        reports: Folder for reports of refinement. None: no hook, the plain command.
    """
    child = {**environ, FLAGS_VARIABLE: json.dumps(dict(flags), default=str)}
    if reports is not None:
        child[LAUNCH_VARIABLE] = json.dumps({"patches": dict(patches), "reports": reports})
        # Without a trailing separator: an empty entry would put the current folder on sys.path.
        inherited = environ.get("PYTHONPATH")
        child["PYTHONPATH"] = f"{INJECT}{os.pathsep}{inherited}" if inherited else str(INJECT)
    return child


def merge_patches(adapters: Mapping[str, Adapter]) -> dict[str, str]:
    """The patches of all adapters.

    Raises:
        PluginError: If two adapters patch the same host module.
    """
    patches: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name, adapter in adapters.items():
        for module, target in adapter.patches.items():
            if module in patches:
                raise PluginError(
                    f"refine: the adapters {owner[module]!r} and {name!r} both patch {module!r}. Load "
                    "only one of them (REFINE_WRAPPER_PLUGINS)."
                )
            patches[module], owner[module] = target, name
    return patches
