"""Switching refinement on in OpenRLHF's own command line, unedited: its flags are read together with ours."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import wraps
from types import ModuleType
from typing import Any

from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.settings.sources import FLAG_PREFIX, flags_from_environment, split_flags
from refine_wrapper_openrlhf.start import prepare

# What tells the parser of train_ppo_ray from any other that its process may use.
_ITS_FLAGS = ("--rollout.n_samples_per_prompt", "--algo.advantage.estimator", "--train.agent_func_path")


def switch_command_line(module: ModuleType | None = None) -> None:
    """Let the parser of ``openrlhf.cli.train_ppo_ray`` take ``--refine.*``, and act on them.

    Wraps ``ArgumentParser.parse_args``: the command line has no function of its own that makes the parser or takes the
    parsed flags. Idempotent. Called by the launcher, and by ``refine-wrapper run`` when the host is imported.

    Args:
        module: The host module that was imported; unused.
    """
    original = ArgumentParser.parse_args
    if getattr(original, "refines", False):
        return

    @wraps(original)
    def parse_args(
        self: ArgumentParser, args: Sequence[str] | None = None, namespace: Any = None, *rest: Any, **named: Any
    ) -> Any:
        if not all(flag in self._option_string_actions for flag in _ITS_FLAGS):
            return original(self, args, namespace, *rest, **named)
        flags, others = split_flags(sys.argv[1:] if args is None else args)
        _add_help(self)
        parsed = original(self, others, namespace, *rest, **named)
        prepare(parsed, {**flags_from_environment(os.environ), **flags})
        return parsed

    parse_args.refines = True  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    ArgumentParser.parse_args = parse_args  # pyright: ignore[reportAttributeAccessIssue]


def _add_help(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("two-stage refinement (refine-wrapper)")
    group.add_argument(f"{FLAG_PREFIX}config", metavar="FILE", default=None, help="A YAML file with settings.")
    for name, field in RefineConfig.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, (), {}) else f" [{default}]"
        text = f"{field.description}{shown}".replace("%", "%%")
        group.add_argument(f"{FLAG_PREFIX}{name}", default=None, help=text)
