"""``refine-wrapper run``: a training command, unedited, with refinement switched on."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click

from refine_wrapper.cli.settings import (
    Settings,
    SettingsCommand,
    given_command,
    given_flags,
    plugin_option,
    resolve_settings,
)
from refine_wrapper.core.planner import make_mode, make_rules
from refine_wrapper.core.prompts.builder import find_template
from refine_wrapper.errors import ConfigError, PluginError
from refine_wrapper.hosts.launch.child import find_command, forwarded_signals
from refine_wrapper.hosts.launch.environment import child_environment, merge_patches
from refine_wrapper.hosts.launch.report import read_marks, read_reports
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.settings.sources import DEFAULT, LAUNCH_VARIABLE

NEVER_REFINED: Final = 3
"""Exit code when the command ended well but nothing was refined."""
_PATCHED: Final = "patched-"
_EXAMPLE: Final = "refine-wrapper run --refine.num_drafts 4 -- python train.py"
_SHOWN_ALWAYS: Final = ("num_drafts", "selector", "template")


@click.command(cls=SettingsCommand, takes_command=True)
@plugin_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the settings, what would be patched and the command; start nothing.",
)
@click.pass_context
def run(context: click.Context, plugin_modules: tuple[str, ...], dry_run: bool) -> None:
    """Run a training command with two-stage refinement switched on.

    The command is not edited: put this in front of it, as in

        refine-wrapper run --refine.num_drafts 4 -- torchrun --nproc_per_node 2 train.py

    It reaches every Python process that the command starts. Settings are checked before anything starts. The
    exit code is the command's own; 2 if it could not be started, and 3 if it ended well but nothing was
    refined.
    """
    command = _command(context)
    if os.environ.get(LAUNCH_VARIABLE):
        raise ConfigError(
            "refine: this was started by another `refine-wrapper run`. Use it once, around the whole command."
        )
    settings = resolve_settings(given_flags(context), plugin_modules)
    plugins = Plugins(settings.config.plugin_modules)
    _check(settings.config, plugins)
    patches = _patches(plugins) if _is_needed(settings.config) else {}
    find_command(command)
    if dry_run:
        _describe(settings, patches, command)
        return
    click.echo(_banner(settings), err=True)
    flags = _with_absolute_template(settings, plugins)
    context.exit(_launch(command, flags, patches, refines=settings.config.active))


def _command(context: click.Context) -> list[str]:
    if context.args:
        raise ConfigError(f"refine: put `--` before the command: refine-wrapper run ... -- {shlex.join(context.args)}")
    command = given_command(context)
    if not command:
        raise ConfigError(f"refine: no command given. Put it after `--`: {_EXAMPLE}")
    return command


def _check(config: RefineConfig, plugins: Plugins) -> None:
    """Find here what the trainer would only find after minutes of starting up."""
    find_template(config.template, plugins)
    make_rules(config, plugins)
    make_mode(config, plugins)
    if config.objective is not None:
        plugins.get("objective", config.objective)


def _is_needed(config: RefineConfig) -> bool:
    """Whether the hook has anything to do.

    A named objective is set with refinement off too, for a fair baseline, and so is dynamic sampling.
    """
    return config.active or config.objective is not None or bool(config.dynamic_sampling)


def _patches(plugins: Plugins) -> dict[str, str]:
    patches = merge_patches(plugins.all("adapter"))
    if not patches:
        raise PluginError(
            "refine: no loaded plugin has an adapter that `run` can switch on, so nothing would be refined. "
            "Adapters come with an installed refine-wrapper or with --plugin; see `refine-wrapper plugins`."
        )
    return patches


def _with_absolute_template(settings: Settings, plugins: Plugins) -> dict[str, object]:
    """The flags for the command, which may change its folder before it reads the template."""
    flags = dict(settings.flags)
    if "template" in flags and settings.config.template not in plugins.all("template"):
        flags["template"] = str(Path(settings.config.template).expanduser().absolute())
    return flags


def _launch(command: Sequence[str], flags: Mapping[str, object], patches: Mapping[str, str], *, refines: bool) -> int:
    folder = (
        tempfile.TemporaryDirectory(prefix="refine-wrapper-", ignore_cleanup_errors=True)
        if patches
        else contextlib.nullcontext()
    )
    with forwarded_signals() as child, folder as reports:
        child.start(command, child_environment(os.environ, flags, patches, reports))
        code = child.wait()
        # An interrupted run may rightly have refined nothing yet.
        if code or child.stopped or reports is None or read_reports(reports):
            return code
        marks = read_marks(reports)
        if not refines and any(mark.startswith(_PATCHED) for mark in marks):
            return code  # the plain run, of the named objective
    click.echo(_never_refined(marks, patches), err=True)
    return NEVER_REFINED


def _banner(settings: Settings) -> str:
    config, sources = settings.config, settings.sources
    if not config.active:
        name = "num_drafts" if config.enabled else "enabled"
        also = [
            _shown(settings, name)
            for name, given in (("objective", config.objective), ("dynamic_sampling", config.dynamic_sampling))
            if given
        ]
        others = f", with {', '.join(also)}" if also else ""
        return f"refine: off ({_shown(settings, name)}); the plain command runs{others}."
    line = "refine: on. " + ", ".join(_shown(settings, name) for name in _SHOWN_ALWAYS)
    others = [name for name, source in sources.items() if source != DEFAULT and name not in _SHOWN_ALWAYS]
    return line + (f"; also {', '.join(_shown(settings, name) for name in others)}" if others else "")


def _shown(settings: Settings, name: str) -> str:
    value = settings.config.model_dump(mode="json")[name]
    return f"{name} {value} ({settings.sources[name]})"


def _describe(settings: Settings, patches: Mapping[str, str], command: Sequence[str]) -> None:
    click.echo(_banner(settings))
    click.echo(f"\nSettings:\n{settings.config.to_yaml()}")
    click.echo("Patched when imported:" if patches else "Patched when imported: nothing")
    for module, target in patches.items():
        click.echo(f"{module} by {target}")
    click.echo(f"\nCommand, not started:\n{shlex.join(command)}")


def _never_refined(marks: Sequence[str], patches: Mapping[str, str]) -> str:
    """What went wrong, from how far the hook got."""
    patched = [mark.removeprefix(_PATCHED) for mark in marks if mark.startswith(_PATCHED)]
    if patched:
        found = f"{', '.join(patched)} was patched, but no draft was sampled. Possible reasons:"
        reasons = [
            "train() was never called, or had nothing left to do",
            "the trainer's class is not one that an adapter wraps (another of the host, or a copy)",
            "the trainer's own configuration switches refinement off",
        ]
    elif marks:
        found = f"Python started with the hook, but imported none of {', '.join(patches)}. Possible reasons:"
        reasons = [
            "the trainer's class is not from a supported host",
            "the host is not installed in the environment of the command's python",
            "the process that trains replaced PYTHONPATH or its environment, or runs on another machine",
        ]
    else:
        found = "No Python of the command started with the hook. Possible reasons:"
        reasons = [
            "it was started with -I, -E or -S, or something between replaced PYTHONPATH",
            "it is the python of another environment, in which refine-wrapper is not installed",
            "the command only submits a job that runs elsewhere: put `refine-wrapper run --` into that job",
        ]
    lines = "".join(f"\n  - {reason}" for reason in reasons)
    return (
        "refine: the command ended well, but nothing was refined: what it trained, if anything, is the plain "
        f"objective. {found}{lines}\n`refine-wrapper doctor` checks the hosts of this environment."
    )
