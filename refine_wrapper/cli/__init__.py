"""The command line: ``refine-wrapper run | ablate | eval | report | doctor | objectives | plugins | config``.

Installed plugins add commands of their own (hook ``register_commands``). A command is imported when it is used; plugins
are loaded only for a command that is none of these, and for ``--help``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, NoReturn

import click

from refine_wrapper.errors import PluginError, RefineError
from refine_wrapper.version import __version__

# Name -> (module, its click command, what it is for).
_COMMANDS: Final = {
    "run": ("refine_wrapper.cli.run", "run", "Run a training command with two-stage refinement switched on."),
    "ablate": (
        "refine_wrapper.cli.ablate",
        "ablate",
        "Train a grid of cells, each plain and refined, and say what the comparison shows.",
    ),
    "eval": (
        "refine_wrapper.cli.evaluate",
        "evaluate",
        "Measure a model on held-out problems, single-shot and with a draft of its own.",
    ),
    "report": (
        "refine_wrapper.cli.report",
        "report",
        "Write one HTML page of RUN that works offline in any browser: tables, curves, groups to look at.",
    ),
    "doctor": (
        "refine_wrapper.cli.doctor",
        "doctor",
        "Check the hosts that are installed here, and what refinement needs of them.",
    ),
    "objectives": (
        "refine_wrapper.cli.objectives",
        "objectives",
        "List the objectives that can be wrapped, with the exact settings each becomes on each host.",
    ),
    "plugins": ("refine_wrapper.cli.plugins", "plugins", "List the plugins and everything they registered."),
    "config": (
        "refine_wrapper.cli.config",
        "config",
        "Print the resolved settings and where each value came from.",
    ),
}


class Refused(click.ClickException):
    """A RefineError as the command line shows it: the message alone."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(self.message, file=file, err=file is None)


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *_of_plugins()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module, attribute, _ = _COMMANDS[cmd_name]
            return getattr(import_module(module), attribute)
        others = _of_plugins()
        return _imported(cmd_name, others[cmd_name]) if cmd_name in others else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, purpose) for name, (_, _, purpose) in _COMMANDS.items()])
        try:
            others = [(name, _purpose(name, target)) for name, target in _of_plugins().items()]
        except RefineError as error:
            # Help is what is asked for where something does not work.
            others = [("?", str(error))]
        if others:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(others)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RefineError as error:
            raise Refused(str(error)) from error


def _of_plugins() -> dict[str, str]:
    """Name -> ``module:command`` of the commands that installed plugins registered."""
    from refine_wrapper.plugins.manager import Plugins

    plugins = Plugins()
    commands = dict(plugins.all("command"))
    for name in commands.keys() & _COMMANDS:
        raise PluginError(
            f"refine: plugin {plugins.owner('command', name)!r} registers the command {name!r}, which refine-wrapper "
            "has itself. Give it another name."
        )
    return commands


def _imported(name: str, target: str) -> click.Command:
    module, _, attribute = target.partition(":")
    try:
        found: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"refine: the command {name!r} ({target}) cannot be imported: {error}.") from error
    if not isinstance(found, click.Command):
        raise PluginError(f"refine: the command {name!r} ({target}) is no click.Command but {type(found).__name__}.")
    return found


def _purpose(name: str, target: str) -> str:
    try:
        return _imported(name, target).get_short_help_str(limit=200)
    except PluginError as error:
        return str(error)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="refine-wrapper")
def cli() -> None:
    """Two-stage refinement around the RL objective you already train with.

    Put `refine-wrapper run --` in front of the command that starts your training; nothing else changes.
    """


def main() -> NoReturn:
    """The console script ``refine-wrapper``."""
    cli(prog_name="refine-wrapper")
    raise SystemExit(0)  # click exits itself
