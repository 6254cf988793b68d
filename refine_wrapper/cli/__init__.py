"""The command line: ``refine-wrapper run | ablate | eval | report | doctor | objectives | plugins | config | demo``.

A subcommand is imported when it is used, so that ``refine-wrapper --help`` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, NoReturn

import click

from refine_wrapper.errors import RefineError
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
    "demo": (
        "refine_wrapper.cli.demo",
        "demo",
        "Train a small model with and without refinement, and compare.",
    ),
}


class Refused(click.ClickException):
    """A RefineError as the command line shows it: the message alone."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(self.message, file=file, err=file is None)


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        return getattr(import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, purpose) for name, (_, _, purpose) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RefineError as error:
            raise Refused(str(error)) from error


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
